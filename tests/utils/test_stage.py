"""The stage runner as recipes use it: done marks, parallel jobs, failure, interruption, resumption."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from toy_project import Project

COPY = """
if stage 1; then
  step copy --in conf.yaml --out "$exp/a.txt" -- cp conf.yaml "$exp/a.txt"
fi
if stage 6; then
  for name in x y; do
    job $name --in "$exp/a.txt" --out "$exp/$name.txt" -- \\
      sh -c 'cp "$1" "$2"; echo "$3" >> "$2"' _ "$exp/a.txt" "$exp/$name.txt" "$name-$units"
  done
fi
"""


@pytest.fixture
def copying(project: Project) -> Project:
    """A recipe of three steps that has run once."""
    project.recipe(COPY)
    (project.recipe_dir / "conf.yaml").write_text("one\n")
    done = project.run()
    assert done.returncode == 0, done.stderr
    return project


def test_first_run_makes_everything(copying: Project) -> None:
    assert (copying.exp / "x.txt").read_text() == "one\nx-bpe\n"
    assert sorted(path.name for path in (copying.exp / ".done").iterdir()) == ["1.copy", "6.x", "6.y"]
    assert "x-bpe" in (copying.exp / "log" / "stage6.x.log").read_text()


def test_unchanged_is_already_done(copying: Project) -> None:
    before = (copying.exp / "x.txt").stat().st_mtime_ns
    again = copying.run("--nj", "5")
    assert again.stdout.count("already done") == 3
    assert (copying.exp / "x.txt").stat().st_mtime_ns == before


def test_changed_input_is_named_and_carried_on(copying: Project) -> None:
    (copying.recipe_dir / "conf.yaml").write_text("two\n")
    again = copying.run()
    assert "copy: runs again: input conf.yaml changed" in again.stdout
    assert "x: runs again: input exp/a.txt changed" in again.stdout
    assert (copying.exp / "y.txt").read_text() == "two\ny-bpe\n"


def test_touched_input_is_not_changed(copying: Project) -> None:
    os.utime(copying.recipe_dir / "conf.yaml", (1, 1))
    assert copying.run().stdout.count("already done") == 3


def test_changed_option_is_named(copying: Project) -> None:
    again = copying.run("--units", "word")
    assert "copy: already done" in again.stdout
    assert "x: runs again: the command changed: x-bpe is now x-word" in again.stdout


def test_vanished_output_is_named(copying: Project) -> None:
    (copying.exp / "y.txt").unlink()
    again = copying.run()
    assert "y: runs again: output exp/y.txt is gone" in again.stdout
    assert "x: already done" in again.stdout
    assert (copying.exp / "y.txt").exists()


def test_altered_output_is_named(copying: Project) -> None:
    (copying.exp / "y.txt").write_text("spoilt")
    assert "y: runs again: output exp/y.txt was changed" in copying.run().stdout
    assert (copying.exp / "y.txt").read_text() == "one\ny-bpe\n"


def test_broken_mark_is_made_anew(copying: Project) -> None:
    (copying.exp / ".done" / "6.x").write_text('{"command": []')
    assert copying.run().returncode == 0
    assert copying.run().stdout.count("already done") == 3


def test_moved_experiment_folder_stays_done(copying: Project) -> None:
    moved = copying.recipe_dir / "elsewhere"
    copying.exp.rename(moved)
    assert copying.run("--exp-dir", str(moved)).stdout.count("already done") == 3


def test_missing_input_says_what_to_do(project: Project) -> None:
    project.recipe(COPY)
    failed = project.run("--stage", "6")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "exp/a.txt: No such file or directory; run the stage that makes it" in failed.stderr


def test_stage_range(project: Project) -> None:
    project.recipe("for n in 0 4 9; do if stage $n; then step s -- echo did $n; fi; done")
    out = project.run("--stage", "4", "--stop-stage", "4").stdout
    assert "did 4" in out
    assert "did 0" not in out and "did 9" not in out


def test_dry_run_prints_commands_and_writes_nothing(project: Project) -> None:
    project.recipe(COPY)
    (project.recipe_dir / "conf.yaml").write_text("one\n")
    dry = project.run("--dry-run")
    assert dry.returncode == 0
    assert "cp conf.yaml" in dry.stdout and "copy: would run (not done yet)" in dry.stdout
    assert not project.exp.exists()


def test_shell_function_is_a_command(project: Project) -> None:
    project.recipe("""
join() { cat "$1" "$1" | tr a-z A-Z > "$2"; }
if stage 1; then step join --out "$exp/two" -- join conf.yaml "$exp/two"; fi
""")
    (project.recipe_dir / "conf.yaml").write_text("b\n")
    dry = project.run("--dry-run").stdout
    assert f"\njoin conf.yaml '{project.exp}/two'  # join: a function of the recipe\n" in dry and "tr a-z" not in dry
    assert project.run().returncode == 0
    assert (project.exp / "two").read_text() == "B\nB\n"


def test_failing_pipe_in_a_function_fails(project: Project) -> None:
    project.recipe("bad() { false | cat; }\nif stage 1; then step bad -- bad; fi")
    assert project.run().returncode == 1


def test_failed_job_ends_the_others(project: Project) -> None:
    project.recipe("""
if stage 6; then
  job long -- sh -c 'echo $$ > pid; exec sleep 100'
  job bad -- sh -c 'sleep 0.5; echo some words; echo the reason >&2; exit 7'
fi
if stage 7; then step next -- touch after; fi
""")
    started = time.monotonic()
    failed = project.run("--nj", "2")
    assert time.monotonic() - started < 30
    assert failed.returncode == 7
    assert failed.stderr.count("\n") == 1
    assert "stage 6: bad failed with status 7: the reason (log: " in failed.stderr
    assert "stage6.bad.log" in failed.stderr
    assert not alive(int((project.recipe_dir / "pid").read_text()))
    assert not list((project.exp / ".done").iterdir())
    assert not (project.recipe_dir / "after").exists(), "a stage after a failed one ran"


def test_killed_job_is_told_as_such(project: Project) -> None:
    project.recipe("if stage 1; then step big -- sh -c 'kill -9 $$'; fi")
    failed = project.run()
    assert failed.returncode == 137
    assert "big was ended by SIGKILL (out of memory?)" in failed.stderr


def test_output_that_was_not_made_fails(project: Project) -> None:
    project.recipe('if stage 1; then step idle --out "$exp/never" -- true; fi')
    failed = project.run()
    assert failed.returncode == 2
    assert "idle ended well but" in failed.stderr and "exp/never is not there" in failed.stderr


def test_unknown_program(project: Project) -> None:
    project.recipe("if stage 1; then step odd -- no-such-program --now; fi")
    failed = project.run()
    assert failed.returncode == 127
    assert "odd: cannot run no-such-program: No such file or directory" in failed.stderr


def test_full_disk_for_logs_is_one_line(project: Project) -> None:
    project.recipe("if stage 1; then step talk -- echo words; fi")
    (project.exp / "log").mkdir(parents=True)
    (project.exp / "log" / "stage1.talk.log").symlink_to("/dev/full")
    failed = project.run()
    assert failed.returncode == 2
    assert failed.stderr == f"toy: error: {project.exp}: No space left on device\n"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("step -- echo", "is no name for a step"),
        ("step a --in x", "no ' -- COMMAND'"),
        ("step a --inn x -- echo", "'--inn' is not understood"),
        ("step a --threads two -- echo", "'two' is not understood"),
        ("job a -- echo; job a -- echo", "two jobs are named 'a'"),
    ],
)
def test_wrong_step_is_told(project: Project, step: str, message: str) -> None:
    project.recipe(f"if stage 1; then {step}; fi")
    failed = project.run()
    assert failed.returncode == 2
    assert message in failed.stderr and failed.stderr.count("\n") == 1


def test_jobs_run_side_by_side(project: Project) -> None:
    """Each of two jobs waits for the other's file, so they end only when both run at once."""
    meet = "touch $1; for i in $(seq 100); do [ -f $2 ] && exit 0; sleep 0.1; done; exit 1"
    project.recipe(f"if stage 6; then job a -- sh -c '{meet}' _ a b; job b -- sh -c '{meet}' _ b a; fi")
    assert project.run("--nj", "2").returncode == 0


def test_nj_1_runs_one_at_a_time(project: Project) -> None:
    alone = "mkdir busy || exit 3; sleep 0.2; rmdir busy"
    project.recipe(f"if stage 6; then for n in a b c; do job $n -- sh -c '{alone}'; done; fi")
    assert project.run("--nj", "1").returncode == 0


def test_threads_and_gpus_of_jobs(project: Project) -> None:
    project.env["CUDA_VISIBLE_DEVICES"] = "4,7"
    project.recipe("""
show() { echo "$OMP_NUM_THREADS/$CUDA_VISIBLE_DEVICES" > "$1"; }
if stage 6; then
  job a --gpu 1 -- show a; job b --gpu 1 -- show b; job c -- show c; job d --threads 3 -- show d
fi
if stage 7; then step e --gpu 2 -- show e; fi
""")
    assert project.run("--nj", "8", "--gpus", "2").returncode == 0
    seen = {name: (project.recipe_dir / name).read_text().strip() for name in "abcde"}
    assert {seen["a"], seen["b"]} == {"2/4", "2/7"}
    assert (seen["c"], seen["d"], seen["e"]) == ("2/", "3/", "4/4,7")  # e has two processes


class Asking:
    """A project whose steps end well and log what SLURM would be asked for."""

    def __init__(self, project: Project) -> None:
        self.project = project
        (project.root / "sbatch").touch(mode=0o755)
        project.env["PATH"] = f"{project.root}:{project.env['PATH']}"
        launcher = "import os, sys; print(*sys.argv[3:9], 'OMP', os.environ['OMP_NUM_THREADS'])"
        (project.root / "utils" / "launch.py").write_text(launcher)  # in place of the real one

    def run(self, *words: str) -> None:
        done = self.project.run("--cmd", "slurm", *words)
        assert done.returncode == 0, done.stderr

    def check(self, stage: int, name: str, cpus: int, gpus: int, memory: int, omp: int) -> None:
        log = (self.project.exp / "log" / f"stage{stage}.{name}.log").read_text()
        assert f"\n--threads {cpus} --gpus {gpus} --memory-gb {memory} OMP {omp}\n" in log


@pytest.fixture
def asking(project: Project) -> Asking:
    return Asking(project)


@pytest.mark.parametrize("nj", [4, 32])
def test_what_slurm_is_asked_for(asking: Asking, nj: int) -> None:
    """8 CPUs for each GPU, but never more than --nj; less memory for jobs, if they do not say otherwise."""
    asking.project.recipe("""
memory=24 job_memory=3
if stage 5; then step decode --gpu 1 -- true; step lang -- true; fi
if stage 8; then job row --threads 1 --gpu 1 --memory "$memory" -- true; job cpu --threads 1 -- true; fi
""")
    asking.run("--nj", str(nj), "--gpus", "2")
    asking.check(5, "decode", nj, 1, 24, nj)
    asking.check(5, "lang", nj, 0, 24, nj)
    asking.check(8, "row", min(nj, 8), 1, 24, min(nj, 8))
    asking.check(8, "cpu", 1, 0, 3, 1)


@pytest.mark.parametrize(("nj", "cpus", "omp"), [(4, 4, 1), (16, 16, 4), (64, 32, 8)])
def test_what_slurm_is_asked_for_training_on_several_gpus(asking: Asking, nj: int, cpus: int, omp: int) -> None:
    """The memory of all its processes, which stage 0 looks for; no other step asks for as much."""
    for name in ("conf/am.yaml", *(f"exp/features/{part}/cuts.jsonl.gz" for part in ("train", "dev"))):
        (asking.project.recipe_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (asking.project.recipe_dir / name).write_text("max_frames: 40000\n")
    asking.project.recipe("""
source "$stage_root/utils/stages.sh"
memory=24 job_memory=8 am_memory=36
mkdir -p "$exp"/{lang,am}
touch "$exp"/lang/{lexicon,phones,units}.txt "$exp/am/model.mpq"
if stage 0; then check_corpus toy 1; fi
if stage 4; then train_acoustic_model; fi
""")
    asking.run("--nj", str(nj), "--gpus", "4")
    asking.check(0, "check", nj, 0, 36, nj)
    asking.check(0, "corpus", nj, 0, 24, nj)
    asking.check(4, "am", cpus, 4, 36, omp)
    assert "--memory-gb 36 " in (asking.project.exp / "log" / "stage0.check.log").read_text()


def test_one_run_at_a_time_in_a_folder(project: Project) -> None:
    project.recipe("if stage 1; then step wait -- sh -c 'touch up; exec sleep 100'; fi")
    first = project.start()
    try:
        wait_for(project.recipe_dir / "up")
        second = project.run()
        assert second.returncode == 2
        assert "is in use by another run" in second.stderr
    finally:
        end(first, signal.SIGTERM)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_run(project: Project, signum: signal.Signals) -> None:
    """Ctrl-C reaches the whole group; kill and kill -9 here reach run.sh alone."""
    project.recipe("""
if stage 6; then
  for n in a b; do job $n -- sh -c 'echo $$ > new-$1; mv new-$1 pid-$1; exec sleep 100' _ $n; done
fi
if stage 7; then step next -- touch after; fi
""")
    run = project.start("--nj", "2")
    pids = []
    for name in "ab":
        wait_for(project.recipe_dir / f"pid-{name}")
        pids.append(int((project.recipe_dir / f"pid-{name}").read_text()))
    if signum == signal.SIGINT:
        os.killpg(run.pid, signum)
    else:
        run.send_signal(signum)
    run.wait(timeout=20)
    assert run.returncode == (130 if signum == signal.SIGINT else -signum)
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))
    end(run, signal.SIGKILL)
    assert not (project.recipe_dir / "after").exists()


RESUMED = """
make() { sleep 0.1; { echo "$1"; cat "${@:3}"; } > "$2.new"; sleep 0.1; mv "$2.new" "$2"; }
if stage 1; then
  step first --out "$exp/first" -- make first "$exp/first"
  step second --in "$exp/first" --out "$exp/second" -- make second "$exp/second" "$exp/first"
fi
if stage 6; then
  for n in a b c; do job $n --in "$exp/second" --out "$exp/$n" -- make $n "$exp/$n" "$exp/second"; done
  run_jobs
  step join --in "$exp"/{a,b,c} --out "$exp/join" -- make join "$exp/join" "$exp"/{a,b,c}
fi
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(project: Project) -> None:
    project.recipe(RESUMED)
    assert project.run("--exp-dir", str(project.root / "whole")).returncode == 0
    want = (project.root / "whole" / "join").read_text()
    assert want.count("first") == 3
    chance = random.Random(20261121)
    kills = 0
    for _ in range(40):
        run = project.start("--nj", "2")
        try:
            run.wait(timeout=chance.uniform(0.1, 1.2))
            break
        except subprocess.TimeoutExpired:
            kills += 1
            end(run, chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
    assert kills >= 2
    last = project.run()
    assert last.returncode == 0, last.stderr
    assert (project.exp / "join").read_text() == want
    assert project.run().stdout.count("already done") == 6


def alive(pid: int) -> bool:
    """Does this process run (a zombie does not)?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(path: Path) -> None:
    """Waits until a file is there."""
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def end(run: subprocess.Popen[str], signum: signal.Signals) -> None:
    """Ends the whole process group and waits."""
    if run.poll() is None:
        os.killpg(run.pid, signum)
    run.communicate(timeout=30)
