"""What each test needs, and in which lane it runs: read off its folder, its fixtures and what its module imports.

Nothing is marked by hand but ``exhaustive``, which is a property of one test's parameters.
"""

import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).parents[1]

NEEDS = {
    "ray": "a Ray on this machine, or of several nodes",
    "cluster": "a Ray of several nodes, or one that takes jobs",
    "hosts": "hosts of network namespaces",
    "s3": "an S3 server, of this process",
    "process": "commands in processes of their own",
    "browser": "a Chromium",
    "families": "a tiny checkpoint of each model family",
}
LANES = {
    "fast": "what every change is tried with, the whole main path among it: make test",
    "slow": "the rest of what every change must pass: make test-slow",
    "exhaustive": "long, as every crash point or value, of which a random part runs otherwise: pytest -m exhaustive",
}

# Who imports these, or something of theirs, needs that.
IMPORTS = {
    "ray": "ray",
    "ray.cluster_utils": "cluster",
    "job_server": "cluster",
    "hosts": "hosts",
    "s3_server": "s3",
    "crash_points.bucket": "s3",
    "subprocess": "process",
    "explorer": "process",
    "kill_harness": "process",
    "crash_points": "process",
    "commands": "process",
}
SLOW_NEEDS = frozenset({"cluster", "hosts", "s3", "browser", "families"})
# Also what starts a process for each command or benchmark, or strikes commands one after the other.
SLOW_PLACES = (
    "analyses/test_comparison.py",
    "api/test_captured.py",
    "api/test_python_docs.py",
    "api/test_python_sweeps.py",
    "api/test_results.py",
    "api/test_saved_calls.py",
    "end_to_end/",
    "captures/test_concurrent_write.py",
    "captures/test_run.py",
    "cli/test_imports.py",
    "cli/test_option_ranges.py",
    "cli/test_outputs.py",
    "cli/test_tables.py",
    "cluster/test_own_ray.py",
    "demo/test_demo_judge.py",
    "files/test_durable.py",
    "interventions/test_live.py",
    "runs/sql/test_limits.py",
    "runs/test_growing.py",
    "runs/test_hub.py",
    "runs/test_repair.py",
    "views/explore/test_found.py",
    "views/explore/test_posts.py",
    "views/explore/test_server.py",
    "views/test_report.py",
    "views/test_report_comparison.py",
    "views/test_report_page.py",
    "test_benchmarks.py",
    # Of the others, by the beginning of an id, what alone takes as long as a hundred of them.
    "analyses/test_analyses.py::test_any_number_of_workers_finds_the_same",
    "analyses/test_analyses.py::test_masks_are_the_judges_of_the_generated_images",
    "analyses/test_findings.py::test_without_any_difference_a_selected_cell_is_rarely_said_to_differ",
    "demo/test_demo_model.py::test_a_few_held_out_prompts_are_drawn_right",
    "demo/test_demo_model.py::test_an_interrupted_training_goes_on_as_if_it_had_not_been",
    "captures/test_aside.py::test_a_gpu_records_what_a_cpu_does_although_the_model_overwrites_its_states[everything]",
    "measures/test_fused.py::test_for_a_gpu_it_reads_16_bytes_at_once_and_adds_in_a_fixed_order",
    "measures/test_fused.py::test_so_they_do_for_more_tokens_and_channels_than_any_tile_divides",
    "models/test_embeddings.py::test_a_capture_that_encodes_first_holds_what_a_plain_one_holds",
    "models/test_family_file.py::test_the_probe_finds_what_the_description_says",
    "models/test_family_file.py::test_the_table_in_the_docs_is_what_its_script_prints",
    "models/test_loading.py::test_an_edit_reaches_what_follows_a_compiled_block",
    "models/test_loading.py::test_taps_see_every_compiled_block_at_every_step",
    "runs/test_hub.py::test_commands_find_server_and_token_in_the_environment",
    "runs/test_queries.py::test_the_number_of_threads_changes_no_digit",
    "runs/test_queries.py::test_the_benchmark_runs_small_and_agrees_with_pandas",
    "runs/test_verify.py::test_every_one_of_many_single_bit_flips_is_found",
)
PAPER = frozenset({"flux", "flux-schnell", "flux2-klein", "qwen-image", "sana"})

TOGETHER = "clusters"
# Two clusters at once are slower than one after the other, and some of these tests measure time.
CLUSTERS = (
    "cluster/test_pool.py",
    "cluster/test_started_elsewhere.py",
    "end_to_end/test_foreign_folder.py",
    "end_to_end/test_hosts.py",
    "end_to_end/test_jobs.py",
    "end_to_end/test_telemetry.py",
)

# The slow files that take longest, in seconds of one process while three run on two cores. They begin first, longest
# first, and are dealt out to the thirds one after the other, so that each third takes about as long.
LONGEST = (
    "test_benchmarks.py",  # 397
    "cli/test_imports.py",  # 343
    "end_to_end/test_hosts.py",  # 314
    "cluster/test_pool.py",  # 271
    "end_to_end/test_kills.py",  # 256
    "end_to_end/test_faults.py",  # 244
    "end_to_end/test_jobs.py",  # 242
    "end_to_end/test_explore.py",  # 228
    "end_to_end/test_foreign_folder.py",  # 221
    "end_to_end/test_pages.py",  # 207
    "views/explore/test_live_page.py",  # 180
    "families/test_families.py",  # 179
    "end_to_end/test_own_columns.py",  # 178
    "end_to_end/test_object_runs.py",  # 166
    "cli/test_outputs.py",  # 166
    "end_to_end/test_tutorials.py",  # 144
    "runs/test_repair.py",  # 129
    "end_to_end/test_file_systems.py",  # 125
    "end_to_end/test_two_at_once.py",  # 124
    "runs/test_object_store.py",  # 119
    "models/test_embeddings.py",  # 116
    "runs/test_changes.py",  # 110
)
THIRDS = 3

# What of the slow ones the fast lane has nevertheless: each guarantee of the main path once, by the beginning of an id.
MAIN_PATH = {
    "every command of the README": "end_to_end/test_readme.py",
    "a capture of each model of the paper": "end_to_end/test_paper_models.py",
    "a capture by two of Ray's actors": "captures/test_run.py::test_two_actors_store_what_one_process_stores",
    "a kill and a resume": "captures/test_run.py::test_a_worker_of_this_process_resumes_to_what_was_undisturbed[killed",
    "a page in a browser": "end_to_end/test_explore.py::test_sliders_show_what_the_store_holds",
}

LANES_OF = pytest.StashKey[dict[str, set[str]]]()
"""The lanes of every test that was found, by id, those that were not chosen included."""
NEEDS_OF = pytest.StashKey[dict[str, set[str]]]()
"""What each of them needs."""


def needs(item: pytest.Item) -> set[str]:
    """What a test needs."""
    from browser import needs_chromium  # seconds, which the process that hands out tests does not need

    found = {IMPORTS[name] for name in _imported(sys.modules[item.function.__module__]) & set(IMPORTS)}
    if "cluster" in found or "one_ray" in item.fixturenames:
        found.add("ray")
    if needs_chromium.mark in item.iter_markers("skipif"):
        found.add("browser")
    if _family(item):
        found.add("families")
    return found


def lanes(item: pytest.Item) -> set[str]:
    """The lanes of a test: one, or something is wrong with this."""
    if item.get_closest_marker("exhaustive"):
        return {"exhaustive"}
    path = place(item.nodeid)
    if path.startswith(tuple(MAIN_PATH.values())):
        return {"fast"}
    slow = SLOW_NEEDS - ({"families"} if _family(item) in PAPER else set())
    return {"slow"} if needs(item) & slow or path.startswith(SLOW_PLACES) else {"fast"}


def thirds(nodeids: Iterable[str]) -> dict[str, int]:
    """The third, 1 to 3, of each test: that of its file. Every file is in one, and each takes about as long.

    Args:
        nodeids: ids of all tests that were found.
    """
    files = sorted({_file(each) for each in nodeids}, key=lambda file: (_rank(file), file))
    there_and_back = [*range(THIRDS), *reversed(range(THIRDS))]
    of_file = {file: 1 + there_and_back[i % len(there_and_back)] for i, file in enumerate(files)}
    return {each: of_file[_file(each)] for each in nodeids}


def longest_first(nodeid: str) -> tuple[bool, int]:
    """The order in which tests begin: what starts clusters, which is one after the other, and then by duration."""
    return unit(nodeid) != TOGETHER, _rank(_file(nodeid))


def _file(nodeid: str) -> str:
    return place(nodeid).split("::")[0]


def _rank(file: str) -> int:
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


def unit(nodeid: str) -> str:
    """What is handed to one of xdist's processes as a whole: a test's file, or all that starts clusters."""
    path = _file(nodeid)
    return TOGETHER if path in CLUSTERS else path


def place(nodeid: str) -> str:
    """A test's id, from the folder of tests on."""
    return nodeid.removeprefix(f"{TESTS.name}/")


def _family(item: pytest.Item) -> str:
    """The name of the family that a test is of, where it runs with one after the other."""
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return next((value for value in given if isinstance(value, str) and value in _families()), "")


@cache
def _families() -> frozenset[str]:
    from checkpoints import CASES  # seconds, which the process that hands out tests does not need

    return frozenset(case.name for case in CASES)


def _imported(module: ModuleType) -> set[str]:
    """Modules that a module has imported, or has something of."""
    found = set()
    for value in vars(module).values():
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        found |= {name} if isinstance(name, str) else set()
    return found
