"""Synthetic results files in the form written by ``benchmarks.run`` and ``benchmarks.gpu``."""

RATIO = {"median": 2.5, "low": 2.0, "high": 3.0}


def checks(impl, case):
    """The passed equivalence checks of an implementation on a case."""
    row = {"backend": impl, "case": f"{case}, batch 0", "max_rel_error": 1e-6, "bound": 1e-5, "ok": True}
    return [{"op": op, **row} for op in ("SVI loss", "SVI gradients")]


def checks_of(rows):
    """The passed checks of all rows, on their cases or on those checked in place of them."""
    return [
        check
        for row in rows
        for on in row["extra"].get("checked_on", [row["case"]])
        for check in checks(row["impl"], on)
    ]


def a_run(date="2026-01-02T00:00:00+00:00", **changes):
    results = {
        "suite": "cpu",
        "meta": {
            "date": date,
            "commit": "abc1234",
            "quick": False,
            "device": "A Processor",
            "driver": None,
            "threads": 2,
            "cpus": 2,
            "load": 0.05,
            "load_warning": None,
            "python": "3.11",
            "torch": "2.13.0",
            "pyro": "1.9.2",
            "triton": None,
            "cuda": None,
        },
        "correctness": checks("dmm_fast", "a step"),
        "cases": [
            {
                "suite": "cpu",
                "case": "a step",
                "impl": "dmm_fast",
                "median_ms": 123.44,
                "min_ms": 120.0,
                "max_ms": 130.06,
                "n": 7,
                "extra": {"speed_up": {"tutorial": RATIO}},
            }
        ],
    }
    results["meta"].update(changes)
    return results


ABOUT = {
    "seeds": 3,
    "eager_factor": 3.0,
    "floor": 1e-6,
    "relu_margin": 1e-6,
    "sizes": {"B": 2, "T": 3, "Z": 4},
}


def an_error(op="rnn_scan: value", case="B=2, T=3, full", error=4e-7, bound=1e-6, eager=2e-7, **changes):
    row = {"op": op, "backend": "cpp", "case": case, "max_rel_error": error, "bound": bound}
    return {**row, "ok": error <= bound, "eager_rel_error": eager, **changes}


def with_errors(*rows):
    return {**a_run(), "errors": list(rows), "errors_about": ABOUT}


def a_point(impl, case, ms, along, speed_up, **extra):
    row = {
        "suite": "cpu-scaling",
        "case": case,
        "impl": impl,
        "median_ms": ms,
        "min_ms": ms,
        "max_ms": ms,
        "n": 3,
    }
    return {**row, "extra": {"along": along, "speed_up": speed_up, **extra}}


def a_scaling_run():
    """Three cases: the second checked in two halves, the third without the tutorial."""
    middle, wide, long = {"B": 2, "T": 4}, {"B": 8}, {"T": 9}
    both, mended = {"tutorial": RATIO, "tutorial mended": RATIO}, {"tutorial mended": RATIO}
    halves = {"checked_on": ["half", "other half"]}
    results = a_run()
    results["suite"] = "cpu-scaling"
    results["cases"] = [
        a_point("tutorial", "middle", 90.0, middle, both, peak_resident_bytes=12_600_000),
        a_point("tutorial mended", "middle", 80.0, middle, both, peak_resident_bytes=None),
        a_point("dmm_fast", "middle", 10.04, middle, both, checked_on=["middle"]),
        a_point("tutorial", "wide", 900.0, wide, both, **halves),
        a_point("tutorial mended", "wide", 800.0, wide, both, **halves),
        a_point("dmm_fast", "wide", 100.0, wide, both, **halves),
        a_point("tutorial mended", "long", 850.0, long, mended),
        a_point("dmm_fast", "long", 50.0, long, mended),
    ]
    results["correctness"] = checks_of(results["cases"])
    results["not_run"] = [{"case": "long", "impl": "tutorial", "why": "it takes minutes"}]
    return results


# --- a run on a GPU -----------------------------------------------------------------------------------

STEP = "SVI step, B=20, T=129, all full"
SIZE = "B=20, H=600, Z=100, T=129"
STAGES = ("machine", "smoke", "kernels", "errors", "replays", "svi_step", "tests")


def timed(suite, case, impl, ms, **extra):
    times = {"median_ms": ms, "min_ms": 0.9 * ms, "max_ms": 1.1 * ms, "n": 9}
    return {"suite": suite, "case": case, "impl": impl, **times, "extra": extra}


def a_step(
    impl, ms, case=STEP, suite="svi_step", along=None, precision="ieee", baselines=("tutorial",), **extra
):
    faster = {"median": 512.0 / ms, "low": 500.0 / ms, "high": 520.0 / ms}
    paired = {"speed_up": dict.fromkeys(baselines, faster), "against_peers": {}, "checked_on": [case]}
    return timed(suite, case, impl, ms, along=along or {}, precision=precision, **{**paired, **extra})


def the_steps():
    """Steps of the tutorial's size in two precisions, of a wider and of a longer batch, and an epoch."""
    both = {"B": 20, "T": 129}
    wide, long, epoch = "SVI step, B=64, T=129", "SVI step, B=20, T=512", "an epoch, B=20"
    return [
        a_step("tutorial", 512.0, along=both),
        a_step("a peer", 8.0, along=both),
        a_step("dmm_fast", 2.0, along=both, against_peers={"a peer": RATIO}, peak_allocated_bytes=43_600_000),
        a_step("dmm_fast, by itself", 1.5, along=both, baselines=()),
        a_step("tutorial", 500.0, f"{STEP}, tf32", precision="tf32"),
        a_step("dmm_fast", 1.0, f"{STEP}, tf32", precision="tf32"),
        a_step("dmm_fast", 6.0, wide, along={"B": 64}, baselines=("tutorial mended",), checked_on=["a part"]),
        a_step("dmm_fast", 9.0, long, along={"T": 512}, baselines=("tutorial mended",)),
        a_step("tutorial", 5120.0, epoch, "epoch"),
        a_step("dmm_fast", 20.0, epoch, "epoch"),
    ]


def a_scan(op, impl, done, us, size=SIZE):
    return timed("scans", f"{op}, {size}, {done}", impl, 0.129 * us, us_per_step=us)


def a_floor(scan, us):
    told = {"clusters": 7, "rows_a_cluster": 3, "width": 114, "us_per_step": us}
    return timed("scans", f"exchange floor of {scan}, {SIZE}", "256 threads", 0.1, **told)


def the_scans():
    """A scan with its floors, the scan at another size without floors, and a plan sweep."""
    other = SIZE.replace("B=20", "B=64")
    return [
        a_scan("rnn_scan", "cuda", "forward", 1.25),
        a_scan("rnn_scan", "cuda", "backward", 1.5),
        a_scan("rnn_scan", "cuda", "forward and backward", 3.0),
        a_scan("rnn_scan", "cuda, graph", "forward", 1.0),
        a_scan("rnn_scan", "nn.RNN, float32", "forward", 9.876),
        a_floor("rnn_scan", 0.5),
        a_floor("rnn_scan_backward", 0.75),
        timed(
            "scans",
            f"plan sweep of rnn_scan, {SIZE}",
            "3 rows",
            0.2,
            us_per_step=1.26,
            estimated_cycles=1160.4,
        ),
        a_scan("rnn_scan", "reference", "forward", 43.9, other),
    ]


def a_rate(case, per_second, of, size):
    return timed("roofline", case, "torch", 1.0, per_second=per_second, of=of, size=size)


def the_ops():
    work = {"bytes": 5_800_000, "flops": 0}
    call = "emitter, B=20, T=129, forward"
    return [
        a_rate("copy", 2.9e12, "bytes", "8 bytes"),
        a_rate("fp32 matrix product", 5e13, "operations", "8 cubed"),
        a_rate("tf32 matrix product", 3.9e14, "operations", "8 cubed"),
        timed("rowwise", call, "triton", 0.004, **work),
        timed("rowwise", call, "reference", 0.05, **work),
        timed("rowwise", call.replace("20", "256"), "triton", 0.04, **{**work, "flops": 10**9}),
    ]


def a_training(impl, step_ms, tests):
    curve = [
        {"seconds": 2.5 * n, "epoch": n, "step": 12 * n, "train": test, "valid": test, "test": test}
        for n, test in enumerate(tests, 1)
    ]
    last = curve[-1]
    told = {"seconds": last["seconds"], "epochs": last["epoch"], "steps": last["step"]}
    told |= {
        "best_test": min(tests),
        "last_test": tests[-1],
        "last_test_elbo": tests[-1] + 0.25,
        "curve": curve,
    }
    told |= {"data": "a file", "target": 6.87}
    return timed("train_to_quality", "training", impl, step_ms, **told)


def the_training():
    return [
        a_training("tutorial", 512.0, [61.0, 9.5, 8.125]),
        a_training("dmm_fast", 2.0, [60.0, 6.8, 6.75, 6.7625]),
    ]


def a_command(epochs=5000, seconds=71.25):
    """A run of ``dmm-fast train``."""
    bound, nll = ({"total_over_total": n, "mean_of_averages": n + 0.125} for n in (7.0625, 6.8125))
    test = {"splits": {"test": {"negative_elbo": bound, "importance_nll": nll}}}
    told = {"seconds": seconds, "epochs": epochs, "particles": 500, "target": 6.87, "test": test, "curve": []}
    return timed("training", "JSB", "dmm-fast train", 1e3 * seconds / epochs, **told)


def the_guides():
    return [
        timed("guides", f"{STEP}, {guide}", "dmm_fast, graphed", ms, guide=guide)
        for guide, ms in (("st-r", 1.25), ("st-r, 2 flows", 3.5))
    ]


def the_tiles():
    """Two launches; the chosen tiles are the fastest only for the second."""
    rows = [("0, a_kernel", 4.0, True), ("0, a_kernel", 2.5, False), ("1, products", 9.0, True)]
    return [
        timed("tiles", launch, f"{us:g} x 64 x 32", 1e-3 * us, chosen=chosen) for launch, us, chosen in rows
    ]


def a_stage(name, **changes):
    return {"name": name, "ok": True, "seconds": 2.0, "error": None, "failures": [], "detail": {}, **changes}


def a_smoke_row(**changes):
    row = {"kernel": "rnn_scan forward", "op": "rnn_scan", "backend": "cuda", "ok": True, "seconds": 0.5}
    row |= {"error": 2e-7, "bound": 1e-6, "worst": "h", "nan": 0, "by_step": [2e-7] * 16}
    return row | {"first_bad": None, "hang": None, "failed": None, **changes}


def a_gpu_run(**changes):
    results = a_run(device="A GPU", driver="1.2", cuda="13.0", **changes)
    steps, training = the_steps(), the_training()
    exact = {
        "op": "exchange_floor",
        "backend": "cuda",
        "case": "8 blocks",
        "max_rel_error": 0.0,
        "bound": 0.0,
    }
    correctness = [*checks_of([*steps, *training]), {**exact, "ok": True}, an_error(backend="cuda")]
    kernels = [{"name": f"kernel<{n} | x>", "count": float(n), "us": 100.0 * n} for n in range(1, 18)]
    profile = {"case": STEP, "impl": "dmm_fast", "step_us": 20000.0, "busy_us": 15300.0, "kernels": kernels}
    results |= {
        "suite": "gpu",
        "correctness": correctness,
        "cases": [*steps, *the_scans(), *the_ops(), *training, *the_guides(), a_command(), *the_tiles()],
        "not_run": [],
        "smoke": [a_smoke_row()],
        "stages": [a_stage(name) for name in STAGES],
        "profiles": [profile],
    }
    stage_of(results, "errors")["detail"] = {"about": ABOUT}
    return results


def stage_of(results, name):
    return next(stage for stage in results["stages"] if stage["name"] == name)


def a_quality_run():
    results, training = a_run(), the_training()
    return {**results, "suite": "cpu-quality", "correctness": checks_of(training), "cases": training}
