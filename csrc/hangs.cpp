#include "hangs.h"

#include "checks.h"
#ifdef DMM_FAST_CUDA
#include <map>
#include <mutex>

#include "hang_text.h"
#endif

namespace dmm {

#ifdef DMM_FAST_CUDA
namespace {

// One per process and never destroyed, since a kernel may still write to its record when the process ends.
struct Hangs {
  std::mutex mutex;
  std::map<int32_t, cuda::HangRecord*> records;  // by device
  std::map<std::string, int> ids;
  std::vector<const std::string*> calls;  // by id
};

Hangs& hangs() {
  static Hangs* const all = new Hangs;
  return *all;
}

// Returns the text of a complete record and resets the record; empty if the record is not complete.
std::string take(const Hangs& all, int32_t device, cuda::HangRecord& record) {
  if (__atomic_load_n(&record.state, __ATOMIC_ACQUIRE) != cuda::kHangComplete) return "";
  const std::string text =
      "CUDA device " + std::to_string(device) + ": " + hang_text(record, *all.calls[static_cast<size_t>(record.call)]);
  record.exchange = cuda::kByCluster;
  __atomic_store_n(&record.state, static_cast<unsigned>(cuda::kNoHang), __ATOMIC_RELEASE);
  return text;
}

}  // namespace

void check_hangs() {
  Hangs& all = hangs();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::string found;
  for (const auto& [device, record] : all.records) {
    const std::string text = take(all, device, *record);
    if (!found.empty() && !text.empty()) found += "\n";
    found += text;
  }
  STD_TORCH_CHECK(found.empty(), found);
}

cuda::HangReport hang_report(int32_t device, const std::string& call) {
  Hangs& all = hangs();
  const std::lock_guard<std::mutex> lock(all.mutex);
  cuda::HangRecord*& record = all.records[device];
  if (record == nullptr) {
    const char* error = cuda::new_hang_record(&record);
    if (record == nullptr) all.records.erase(device);
    STD_TORCH_CHECK(error == nullptr, call, ": memory for the record of a hang: ", error ? error : "");
  }
  const std::string found = take(all, device, *record);
  STD_TORCH_CHECK(found.empty(), found);
  const auto [entry, is_new] = all.ids.try_emplace(call, static_cast<int>(all.calls.size()));
  if (is_new) all.calls.push_back(&entry->first);
  return {record, entry->second};
}
#else
void check_hangs() {}  // without CUDA no kernel waits for others
#endif

}  // namespace dmm
