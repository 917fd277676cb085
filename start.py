"""Set up the locked environment in `.venv`, then do a job in it. Needs Python 3.11, 3.12 or 3.13 and nothing else.

python3 start.py run       train, evaluate and report (all that `sleepai run` takes may follow)
python3 start.py test      run the tests (all that `pytest` takes may follow)
python3 start.py lab       open JupyterLab
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENV = Path(os.environ.get("SLEEPAI_VENV", ROOT / ".venv")).resolve()
BIN = ENV / ("Scripts" if os.name == "nt" else "bin")
JOBS = {
    "run": ["sleepai", "run"],
    "report": ["sleepai", "report"],
    "verify": ["sleepai", "verify"],
    "audit": ["sleepai", "audit"],
    "fetch": ["sleepai", "fetch"],
    "list": ["sleepai", "list"],
    "test": ["pytest"],
    "lab": ["jupyter", "lab"],
}


def tool(name):
    return str(BIN / (name + (".exe" if os.name == "nt" else "")))


def has_pip():
    python = Path(tool("python"))
    return (
        python.exists()
        and not subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode
    )


def version_of_env():
    """The Python of the environment, as (major, minor)."""
    ask = [tool("python"), "-c", "import sys; print(*sys.version_info[:2])"]
    said = subprocess.run(ask, capture_output=True, text=True).stdout.split()
    return tuple(map(int, said))


def set_up():
    """Make the environment, or bring it to the lock when the lock has changed."""
    parts = [(ROOT / name).read_bytes() for name in ("requirements.lock", "pyproject.toml")]
    parts += [str(ROOT).encode(), str(sys.version_info[:2]).encode()]
    state = hashlib.sha256(b"".join(parts)).hexdigest()
    mark = ENV / "sleepai-lock.txt"
    if mark.exists() and mark.read_text() == state:
        return
    print(f"setting up the environment in {ENV} (once; about a minute)", flush=True)
    if not has_pip() or version_of_env() != sys.version_info[:2]:
        venv.create(ENV, with_pip=True, clear=ENV.exists())  # also when a first attempt was cut short
    python, quiet = tool("python"), dict(cwd=ROOT, check=True)
    uv = subprocess.run([python, "-m", "pip", "install", "-q", "uv"], cwd=ROOT).returncode == 0
    install = (
        [python, "-m", "uv", "pip", "install", "-q", "--python", python]
        if uv
        else [python, "-m", "pip", "install", "-q"]
    )
    subprocess.run([*install, "-r", "requirements.lock"], **quiet)
    subprocess.run([*install, "--no-deps", "-e", "."], **quiet)
    mark.write_text(state)


def main():
    job = sys.argv[1] if len(sys.argv) > 1 else ""
    if job not in JOBS:
        sys.exit(__doc__)
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        found = sys.version.split()[0]
        sys.exit(f"start.py: needs Python 3.11, 3.12 or 3.13, this is {found}; call it as python3.13 start.py {job}")
    try:
        set_up()
    except subprocess.CalledProcessError as e:
        sys.exit(
            f"start.py: setting up failed in `{' '.join(map(str, e.cmd[:6]))} …` (its message stands above); fix that and start again"
        )
    except KeyboardInterrupt:
        sys.exit("start.py: stopped while setting up; the next start goes on")
    name, *rest = JOBS[job]
    try:
        sys.exit(subprocess.run([tool(name), *rest, *sys.argv[2:]], cwd=ROOT).returncode)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
