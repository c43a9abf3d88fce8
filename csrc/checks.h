// Checks of an op's arguments before any memory is accessed, and their conversion to kernel parameters. A message names
// the argument, what was expected and what was given.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/params.h"

namespace dmm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
template <size_t N>
using Several = decltype(std::tuple_cat(std::declval<std::array<Tensor, N>>()));  // a tuple of N tensors

inline std::string describe(const Tensor& t) {
  std::ostringstream out;
  out << torch::headeronly::toString(t.scalar_type()) << " of shape (";
  for (int64_t d = 0; d < t.dim(); ++d) out << (d ? ", " : "") << t.size(d);
  out << (t.dim() == 1 ? ",) on " : ") on ");
  if (t.is_cpu()) out << "cpu";
  else if (t.is_cuda()) out << "cuda:" << t.get_device_index();
  else out << "another device";
  return out.str();
}

// The index of a string among the valid choices of an argument.
inline int64_t choice(const char* name, const std::string& given, std::initializer_list<const char*> choices) {
  const auto found = std::find(choices.begin(), choices.end(), given);
  if (found != choices.end()) return found - choices.begin();
  std::string expected;
  for (const char* each : choices) expected += (expected.empty() ? "" : " or ") + std::string(each);
  STD_TORCH_CHECK(false, name, ": expected ", expected, ", got ", given);
}

inline void check_backend(const std::string& backend) {
  STD_TORCH_CHECK(backend.empty() || backend == "cpp", "backend: expected '' or 'cpp' for tensors on a CPU, got '",
                  backend, "'");
}

template <class S>
S* data_of(const Tensor& t) {
  if constexpr (std::is_const_v<S>) return t.template const_data_ptr<std::remove_const_t<S>>();
  else return t.template mutable_data_ptr<S>();
}

// A tensor whose last dimension is contiguous, [P, B, T, width], [P, B, width] or, as one row, [N, width]. It must
// outlive the result.
template <class S>
cpu::Rows<const S> rows_of(const Tensor& t) {
  const S* const data = data_of<const S>(t);
  const int64_t dims = t.dim();
  if (dims == 2) return {{data}, t.stride(0)};
  const int64_t particles = t.size(0), batch = t.size(1), particle = t.stride(0), sequence = t.stride(1);
  cpu::Rows<const S> rows{{}, dims == 4 ? t.stride(2) : 0};
  rows.begin.reserve(particles * batch);
  for (int64_t p = 0; p < particles; ++p)
    for (int64_t b = 0; b < batch; ++b) rows.begin.push_back(data + p * particle + b * sequence);
  return rows;
}

enum class Device { cpu, cuda };

// The checks of one call. The leading tensor defines dtype and device. The dimensions of a tensor are a word of the table
// of ops, such as "PBTZ" or "PBT(2Z)"; the first tensor with a letter in its word binds that size for the others. The
// sizes in a difference, "(I-Z)", must already be bound.
class TensorChecks {
 public:
  TensorChecks(Device device, const char* name, const Tensor& leading)
      : leading_(leading), device_(device), dtype_(leading.scalar_type()) {
    sizes_.fill(kUnknown);
    const bool is_known = dtype_ == ScalarType::Float || (dtype_ == ScalarType::Double && device == Device::cpu);
    STD_TORCH_CHECK(is_known && is_here(leading), name, ": expected ",
                    device == Device::cpu ? "Float or Double on cpu" : "Float on a CUDA device", ", got ",
                    describe(leading));
    if (device == Device::cuda) index_ = leading.get_device_index();
  }

  ScalarType dtype() const { return dtype_; }
  int64_t size(char letter) const { return sizes_[letter - 'A']; }

  void check(const char* name, const Tensor& t, const char* word) { check(name, t, word, dtype_); }
  void check(const char* name, const Tensor& t, const char* word, ScalarType dtype) {
    STD_TORCH_CHECK(is_here(t) && t.scalar_type() == dtype && fits(t, word), name, ": expected ",
                    torch::headeronly::toString(dtype), " of shape ", shape(word), " on ", device_name(), ", got ",
                    describe(t));
  }
  // Checks rows of sequences, starts or single steps, and copies them if the last dimension is not contiguous.
  template <class S>
  cpu::Rows<const S> rows(const char* name, Tensor& t, const char* word) {
    check(name, t, word);
    const int64_t last = t.dim() - 1;
    if (t.size(last) > 1 && t.stride(last) != 1) t = torch::stable::contiguous(t);
    return rows_of<S>(t);
  }
  // Checks another tensor, and copies it if it is not contiguous.
  template <class S>
  const S* dense(const char* name, Tensor& t, const char* word) {
    check(name, t, word);
    if (!t.is_contiguous()) t = torch::stable::contiguous(t);
    return data_of<const S>(t);
  }
  const int64_t* lengths(Tensor& t) {
    check("lengths", t, "B", ScalarType::Long);
    if (!t.is_contiguous()) t = torch::stable::contiguous(t);
    const int64_t* values = t.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < size('B'); ++b)
      STD_TORCH_CHECK(values[b] >= 0 && values[b] <= size('T'), "lengths: expected values between 0 and T = ",
                      size('T'), ", got ", values[b], " in row ", b);
    return values;
  }
  cpu::Observed mask(std::optional<Tensor>& mask) {
    if (!mask) return {nullptr, nullptr};
    Tensor& t = *mask;
    STD_TORCH_CHECK(is_here(t) && t.scalar_type() == ScalarType::Bool && (fits(t, "BT") || fits(t, "BTD")),
                    "mask: expected Bool of shape ", shape("BT"), " or ", shape("BTD"), " on ", device_name(), ", got ",
                    describe(t));
    if (!t.is_contiguous()) t = torch::stable::contiguous(t);
    const auto* bytes = reinterpret_cast<const uint8_t*>(t.const_data_ptr<bool>());
    if (t.dim() == 2) return {bytes, nullptr};
    return {nullptr, bytes};
  }

  // An uninitialised result; empty, (0,), if it is not requested.
  Tensor make(const char* word, bool wanted = true) const {
    std::vector<int64_t> sizes;
    if (!wanted) sizes.push_back(0);
    else for (const Dim dim : dims_of(word)) sizes.push_back(value(dim));
    return torch::stable::new_empty(leading_, sizes);
  }
  template <class S>
  Tensor make(const char* word, S*& data, bool wanted = true) const {
    Tensor made = make(word, wanted);
    data = wanted ? data_of<S>(made) : nullptr;
    return made;
  }

 private:
  static constexpr int64_t kUnknown = -1;

  struct Dim {
    char letter;
    int64_t factor;
    char minus;  // the letter that is subtracted, or 0
  };
  struct Dims {
    std::array<Dim, 4> all;
    int64_t count;
    const Dim* begin() const { return all.data(); }
    const Dim* end() const { return all.data() + count; }
  };
  static Dims dims_of(const char* word) {
    Dims dims{{}, 0};
    for (; *word; ++dims.count) {
      const bool is_made = *word == '(', is_difference = is_made && word[2] == '-';
      if (is_difference) dims.all[dims.count] = {word[1], 1, word[3]};
      else if (is_made) dims.all[dims.count] = {word[2], word[1] - '0', 0};
      else dims.all[dims.count] = {*word, 1, 0};
      word += is_difference ? 5 : is_made ? 4 : 1;
    }
    return dims;
  }
  int64_t value(const Dim& dim) const {
    return dim.factor * size(dim.letter) - (dim.minus ? size(dim.minus) : 0);
  }

  bool is_here(const Tensor& t) const {
    return device_ == Device::cpu ? t.is_cpu() : t.is_cuda() && (index_ < 0 || t.get_device_index() == index_);
  }
  std::string device_name() const { return device_ == Device::cpu ? "cpu" : "cuda:" + std::to_string(index_); }

  // Also binds the sizes of new letters.
  bool fits(const Tensor& t, const char* word) {
    const Dims dims = dims_of(word);
    if (t.dim() != dims.count) return false;
    for (int64_t d = 0; d < dims.count; ++d) {
      const Dim& dim = dims.all[d];
      int64_t& known = sizes_[dim.letter - 'A'];
      const int64_t given = t.size(d);
      if (known == kUnknown && !dim.minus) known = given / dim.factor;
      if (given != value(dim)) return false;
    }
    return true;
  }
  std::string shape(const char* word) const {
    std::ostringstream out;
    const Dims dims = dims_of(word);
    for (const Dim& dim : dims) {
      out << (&dim == dims.begin() ? "(" : ", ");
      if (size(dim.letter) != kUnknown) out << value(dim);
      else if (dim.factor == 1) out << dim.letter;
      else out << dim.factor << " " << dim.letter;
    }
    out << (dims.count == 1 ? ",)" : ")");
    return out.str();
  }

  const Tensor& leading_;
  const Device device_;
  const ScalarType dtype_;
  int32_t index_ = -1;  // of a CUDA device
  std::array<int64_t, 26> sizes_;
};

template <class Run>
auto by_dtype(ScalarType dtype, Run run) {
  return dtype == ScalarType::Float ? run(float{}) : run(double{});
}

}  // namespace dmm
