"""Creates the environment `.venv` with the locked packages; `make setup` calls it.

The Python is the newest supported one on this machine; PYTHON=<its path> names another. Without a
GPU, PyTorch's CPU build is installed where the package index offers one, else the default build;
TORCH=cpu or TORCH=cuda decides otherwise. WHEELS=<a folder that has every package> makes a network
unnecessary. An interrupted or failed call can be repeated.
The syntax is that of Python 3.6, so that an older Python can run this file and name the versions
that are needed.
"""

import glob
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOCKS = [
    os.path.join(ROOT, "requirements", name + ".lock")
    for name in ("torch-cpu", "torch", "packages")
]
VENV = os.path.join(ROOT, ".venv")
PY = os.path.join(VENV, "bin", "python")
STATE = os.path.join(VENV, ".ready")  # "unfinished", "usable", or what was installed
SUPPORTED = ("3.14", "3.13", "3.12", "3.11")
PIP = [PY, "-I", "-m", "pip", "--disable-pip-version-check"]
WHEELS = os.environ.get("WHEELS", "")
UV = None if WHEELS else shutil.which("uv")
LINUX = sys.platform == "linux"
DISK = {"cpu": 2.2, "cuda": 6.1}  # GB of .venv with each build of PyTorch, on Linux
AGAIN = "run the same command again"
BROKEN = "a download broke off or was altered; " + AGAIN
OFFLINE = "the package index cannot be reached; check the network and pip's settings, and " + AGAIN
LACKING = "lacks {}, or has it for another Python or system only; add it, and " + AGAIN
# Patterns of installers' messages, and what the error line says; the first match counts.
REASONS = (
    (
        r"No space left|Errno 28|os error 28|Disk quota",
        "no disk space is left for .venv, pip's cache or temporary files (TMPDIR); free some, and "
        + AGAIN,
    ),
    (
        r"from versions: none|NewConnection|Failed to establish|timed? ?out|ProxyError"
        r"|name resolution|dns error|tcp connect error",
        OFFLINE,
    ),
    (
        r"DO NOT MATCH THE HASHES|[Hh]ash mismatch|IncompleteRead|incomplete-download"
        r"|[Cc]onnection ?(broken|reset)|not enough bytes|[Uu]nexpected EOF|end of file",
        BROKEN,
    ),
    (
        r"Permission denied|Read-only file system",
        "this folder cannot be written; use a clone in a folder of your own",
    ),
)


def fail(code: int, message: str) -> None:
    """End with one line on standard error."""
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)


def explain(printed: str) -> str:
    """Return why an installer failed and what to do, from its messages."""
    lacking = re.search(r"No matching distribution found for (\S+)", printed)
    if WHEELS and lacking:
        return f"{WHEELS} {LACKING.format(lacking.group(1))}"
    for pattern, reason in REASONS:
        if re.search(pattern, printed):
            return reason
    lines = [line for line in printed.splitlines() if line.strip()] or ["no message"]
    for start in ("╰─> ", "error"):  # A package that cannot be built, or any other message.
        lines = [line for line in lines if line.lower().startswith(start)] or lines
    return f"could not be installed ({lines[-1].strip()}); fix that and {AGAIN}"


def call(command: "list[str]", shown: bool = False) -> "tuple[bool, str, str]":
    """Run a command; return whether it succeeded, its standard output and its messages.

    Args:
        command: the program and its arguments.
        shown: whether its standard output, such as a progress bar, goes to the terminal instead.
    """
    process = subprocess.Popen(
        command,
        stdout=None if shown else subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    output, messages = process.communicate()
    return process.returncode == 0, output or "", messages


def read_state() -> "list[str]":
    """Return what the last call wrote about `.venv`: fingerprint, Python and build if complete."""
    if not os.path.exists(STATE):
        if os.path.isdir(VENV) and os.listdir(VENV):
            fail(2, f".venv: was not made by this command; move it away and {AGAIN}")
        return []
    with open(STATE) as file:
        return file.read().split()


def write_state(text: str) -> None:
    """Note the state of `.venv` for the next call."""
    with open(STATE, "w") as file:
        file.write(text + "\n")


def find_pythons() -> "list[tuple[str, str]]":
    """Return (version, path) of the supported Pythons of this machine, the newest first."""
    named = os.environ.get("PYTHON")
    folders = os.environ["PATH"].split(os.pathsep)
    pyenv = os.path.join(os.environ.get("PYENV_ROOT", "~/.pyenv"), "versions", "*", "bin")
    for pattern in (pyenv, "~/.local/share/uv/python/*/bin"):
        folders += sorted(glob.glob(os.path.expanduser(pattern)))
    names = [os.path.join(folder, "python" + each) for each in SUPPORTED for folder in folders]
    pythons, refusals = {}, {}
    for path in [named] if named else [*names, sys.executable]:
        if not shutil.which(path) or os.path.basename(path)[6:] in pythons:
            continue
        probe = "import sys; print('%d.%d' % sys.version_info[:2]); import ensurepip"
        has_pip, version, _ = call([path, "-I", "-c", probe])
        version = version.strip()
        if version not in SUPPORTED:
            refusals[path] = "Python " + version if has_pip else "no working Python"
        elif has_pip or UV:
            pythons.setdefault(version, path)
        else:
            refusals[path] = f"without ensurepip (Debian, Ubuntu: install python{version}-venv)"
    if not pythons:
        found = "; ".join(f"{path} is {what}" for path, what in sorted(refusals.items()))
        found = found or f"{named} is not there"
        needed = f"Python {', '.join(SUPPORTED[:0:-1])} or {SUPPORTED[0]} is needed"
        fail(2, f"{needed}, but {found}; install one or pass PYTHON=<its path>")
    return sorted(pythons.items(), key=lambda item: SUPPORTED.index(item[0]))


def require_disk(build: str) -> None:
    """Refuse to begin an installation for which the disk has no room."""
    free = shutil.disk_usage(VENV).free / 1e9
    needed = DISK[build]
    if free < needed and not glob.glob(VENV + "/lib/*/site-packages/torch"):
        lack = f"needs about {needed} GB of disk space, and {free:.1f} GB are free"
        fail(5, f".venv: {lack}; free some, and {AGAIN}")


def make_environment(version: str, path: str) -> None:
    """Create an empty `.venv`, or empty the one that is there."""
    print(f"Creating .venv with Python {version} ({path}).", flush=True)
    os.makedirs(VENV, exist_ok=True)
    write_state("unfinished")
    for old in (os.path.join(VENV, name) for name in os.listdir(VENV)):
        if os.path.isdir(old) and not os.path.islink(old):
            shutil.rmtree(old)
        elif old != STATE:
            os.remove(old)
    require_disk("cpu")
    command = [path, "-I", "-m", "venv", VENV]
    done, output, messages = call(command)
    if not done and UV:
        done, output, messages = call([*command, "--without-pip"])
    if not done:
        fail(5, ".venv: " + explain(output + messages))
    write_state("usable")


def install(name: str, *arguments: str, uv: bool = False, shown: bool = False) -> None:
    """Install packages; a download that breaks off is tried once more.

    Args:
        name: what an error is about.
        arguments: of `pip install` or `uv pip install`.
        uv: whether uv installs.
        shown: whether progress is shown.
    """
    command = [UV, "pip", "install", "--python", PY] if uv else [*PIP, "install"]
    command += [*([] if shown else ["-q"]), *arguments]
    for attempt in range(2):
        write_state("unfinished")
        done, output, messages = call(command, shown)
        write_state("usable")
        if done:
            return
        reason = explain(output + messages)
        if attempt or reason != BROKEN:
            fail(5, f"{name}: {reason}")
        print(f"{name}: a download broke off; trying once more.", flush=True)


def use_folder() -> None:
    """Let pip find all packages in the folder WHEELS, and nowhere else."""
    if not os.path.isdir(WHEELS):
        fail(2, f"WHEELS={WHEELS}: no such folder")
    # As an address, since pip takes a space for the end of a path.
    folder = pathlib.Path(WHEELS).resolve().as_uri()
    os.environ.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=folder)


def offers_cpu_build(torch: str, version: str) -> bool:
    """Ask pip whether the package index has PyTorch's CPU build for a version of Python."""
    query = [*PIP, "install", "-q", "--dry-run", "--no-deps", "--only-binary=:all:", "--target"]
    offered, _, messages = call([*query, VENV, "--python-version", version, torch + "+cpu"])
    if not offered and "from versions: none" in messages:
        fail(5, f"{torch}: {explain(messages)}")
    return offered


def let_uv_choose(torch: str, asked: str) -> bool:
    """Install the build of PyTorch that uv thinks best; return whether that was possible."""
    if not UV or asked == "cuda":
        return False
    write_state("unfinished")
    command = [UV, "pip", "install", "-q", "--python", PY, "--torch-backend", asked or "auto"]
    done = call([*command, torch])[0]
    write_state("usable")
    if not done:
        print(f"uv cannot install its choice of {torch} here; pip is used instead.", flush=True)
    return done


def install_torch(torch: str, pythons: "list[tuple[str, str]]", asked: str) -> None:
    """Install PyTorch with pip: without a GPU the CPU build if there is one, else the default.

    Args:
        torch: the locked version.
        pythons: those to choose from, the newest first; `.venv` has the first.
        asked: the build that the user wants, `cpu` or `cuda`, or nothing.
    """
    wants_cpu = LINUX and asked != "cuda" and (asked == "cpu" or not shutil.which("nvidia-smi"))
    offered = [each for each in pythons if wants_cpu and offers_cpu_build(torch, each[0])]
    if offered:
        if offered[0] != pythons[0]:
            print(f"The index has the CPU build of {torch} for Python {offered[0][0]}.")
            make_environment(*offered[0])
        # By hash where it is known, else by version: the lock has markers.
        install(torch, "--no-deps", "--require-hashes", "-r", LOCKS[0])
        install(torch, "--no-deps", torch + "+cpu")
        return
    if asked == "cpu" and LINUX:
        where = "add it" if WHEELS else "name an index that has it in PIP_EXTRA_INDEX_URL"
        source = WHEELS or "the package index"
        fail(5, f"{torch}: {source} has no CPU build; {where} or leave TORCH=cpu out")
    if LINUX:
        require_disk("cuda")
        lacks = f"The {'folder' if WHEELS else 'index'} has no CPU build of it"
        why = lacks if wants_cpu else "For the GPU"
        sizes = "5 GB on disk" if WHEELS else "about 2.7 GB to download, 5 GB on disk"
        print(f"{torch}: {why}; installing the default build, {sizes}.", flush=True)
    install(torch, "--no-deps", "--require-hashes", "-r", LOCKS[1], shown=LINUX)


def main() -> None:
    """Bring `.venv` to the state that the locks describe, unless it is there already."""
    started = time.time()
    asked = os.environ.get("TORCH", "")
    if asked not in ("", "cpu", "cuda"):
        fail(2, f"TORCH={asked}: not a build of PyTorch; use cpu or cuda")
    if WHEELS:
        use_folder()
    if not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ["UV_NO_CACHE"] = "1"
    digest = hashlib.sha256()
    for path in [*LOCKS, os.path.join(ROOT, "pyproject.toml")]:
        with open(path, "rb") as file:
            digest.update(file.read())
    state = read_state()
    keeps = state not in ([], ["unfinished"]) and os.path.exists(PY)
    keeps = keeps and (not asked or state[2:] in ([], [asked]))
    named = find_pythons()[0][0] if os.environ.get("PYTHON") else "".join(state[1:2])
    if keeps and state[:2] == [digest.hexdigest(), named]:
        return

    pythons = find_pythons()
    about = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = call([PY, "-I", "-c", about])[1].strip() if keeps else ""
    if version not in dict(pythons):
        make_environment(*pythons[0])
    elif version != pythons[0][0]:
        pythons = [(version, PY)]
    with open(LOCKS[1]) as lock:
        torch = re.search(r"torch==[\w.]+", lock.read()).group()
    uv = let_uv_choose(torch, asked)
    if not uv:
        install_torch(torch, pythons, asked)
    print("Installing the other locked packages; a few minutes the first time.", flush=True)
    install("packages.lock", "--no-deps", "--require-hashes", "-r", LOCKS[2], uv=uv)
    install("attnseg", "--no-deps", "--no-build-isolation", "--editable", ROOT, uv=uv)
    about += (
        "; import attnseg, torch as t; print(t.__version__, 'cuda' if t.version.cuda else 'cpu')"
    )
    works, output, messages = call([PY, "-c", about])
    if not works:
        fail(5, f".venv: does not work ({messages.splitlines()[-1]}); delete it and {AGAIN}")
    version, torch, build = output.split()
    write_state(f"{digest.hexdigest()} {version} {build}")
    paths = (os.path.join(folder, each) for folder, _, files in os.walk(VENV) for each in files)
    size = sum(os.lstat(path).st_size for path in paths) / 1e9
    what = f"Python {version}, torch {torch}, {size:.1f} GB in .venv"
    print(f"Ready after {time.time() - started:.0f} s: {what}.", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        fail(5, explain(f"error: {error}"))
