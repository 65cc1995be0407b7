"""What the tables of the other scripts say about how they were made."""
import datetime, os, platform, re, shlex, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LLMQ = os.environ.get("LLMQ", os.path.join(ROOT, "target", "release", "llmq"))
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu():
    """The processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf8") as file:
            names = re.findall(r"^model name\s*: (.*)$", file.read(), re.M)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def program():
    """The program's version, and the state of the sources, if git knows it."""
    version = subprocess.run([LLMQ, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    try:
        git = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
        return f"{version}, commit {subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()}"
    except (OSError, subprocess.CalledProcessError):
        return version


def shown(path):
    """A path as it is mentioned: from here, where it lies below."""
    path = os.path.relpath(path)
    return os.path.abspath(path) if path.startswith("..") else path


def header():
    """The lines about command, program, machine and date; to be made before anything is measured."""
    script = os.path.relpath(sys.argv[0], ROOT)
    load = f", load average {os.getloadavg()[0]:.1f} before it began" if hasattr(os, "getloadavg") else ""
    return [
        f"- Command: `{shlex.join([script, *sys.argv[1:]])}`",
        f"- Program: {program()}",
        f"- Machine: {cpu()}, {CORES} cores{load}",
        f"- Date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
    ]
