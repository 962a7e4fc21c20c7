"""Kernels that do not import fastai anew: forked from a process that has it loaded.

`Manager` is a jupyter_client kernel manager; what it starts differs from a plain kernel only in the
modules that are there already. No module of ours is among them, so that a lesson runs the library
as it is. Where it cannot fork (no pidfd, another thread in the process), it starts a plain kernel.

    python scripts/warm.py    # the process that is forked; it reads requests and answers with a pid
"""
import atexit, builtins, contextlib, importlib.util, json, os, random, select, signal
import subprocess, sys, threading
from pathlib import Path

LOADED = """matplotlib.pyplot fastcore.test sklearn.datasets fastai.basics
    fastai.callback.all""".split()
BACKEND = "module://matplotlib_inline.backend_inline"  # what ipykernel sets
_set = {}                      # what libraries put into the environment when they were loaded
_lock = threading.Lock()


# ---- in the process that is forked

class ZMQInteractiveShell:
    """Stands in for IPython's while libraries are imported: by its name fastai chooses its bars,
    and by the kernel pandas knows that it is not in a terminal"""
    kernel = None


def load():
    "Import what lessons import, as in a notebook"
    os.environ["MPLBACKEND"] = BACKEND  # matplotlib reads it once
    builtins.get_ipython = ZMQInteractiveShell
    before = dict(os.environ)
    for name in ("ipykernel.kernelapp", *LOADED): importlib.import_module(name)
    _set.update((k, v) for k, v in os.environ.items() if k not in before)
    del builtins.get_ipython


def alone()->bool:
    "May this process be forked? Only its main thread would go along"
    tasks = Path("/proc/self/task").glob("*/comm")
    names = [p.read_text().strip() for p in tasks if p.parent.name != str(os.getpid())]
    return set(names) <= {"jemalloc_bg_thd"}  # pyarrow's memory, which is prepared for forks


def become_kernel(
    request:dict, # of `start`
    answers:int   # file descriptor, which is not the kernel's
):
    "What `python -m ipykernel_launcher` does from here on, with random numbers of its own"
    os.close(answers)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(_set | request["env"], JPY_PARENT_PID=str(os.getppid()))
    os.chdir(request["cwd"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.modules["torch"].seed()
    sys.argv[:] = [importlib.util.find_spec("ipykernel_launcher").origin, *request["argv"]]
    # it ends with the process that forked it
    app = sys.modules["ipykernel.kernelapp"].IPKernelApp.instance(parent_handle=os.getppid())
    app.initialize(sys.argv[1:])
    app.start()


def serve():
    "Fork for every request until the one who asks is gone"
    del sys.path[0]  # the folder of this script is not a lesson's
    answers = os.dup(1)
    os.dup2(2, 1)    # what a library says goes where its warnings go
    say = lambda o: os.write(answers, (json.dumps(o) + "\n").encode())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries the kernels
    load()
    say(alone())
    while alone() and (line := sys.stdin.readline()):
        if pid := os.fork(): say(pid)
        else:
            os.setsid()
            become_kernel(json.loads(line), answers)
            os._exit(0)


# ---- in the process that asks

class Forked:
    "The part of `subprocess.Popen` that jupyter_client uses, for a process that is not our child"
    stdin = stdout = stderr = None
    def __init__(self, pid):
        self.pid = pid
        self.fd = os.pidfd_open(pid)
        atexit.register(self.close)

    def poll(self): return 0 if self.fd is None or select.select([self.fd], [], [], 0)[0] else None

    def close(self):
        if self.fd is not None: os.close(self.fd)
        self.fd = None
        atexit.unregister(self.close)

    def wait(self):
        if self.fd is not None: select.select([self.fd], [], [])
        self.close()
        return 0

    def send_signal(self, sig):
        if self.poll() is None: signal.pidfd_send_signal(self.fd, sig)
    def terminate(self): self.send_signal(signal.SIGTERM)
    def kill(self): self.send_signal(signal.SIGKILL)


class Server:
    "The process to fork from; it ends with this one"
    def __init__(self, python, env):
        self.env = dict(env)
        cmd = [*python, str(Path(__file__).resolve())]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(cmd, env=self.env, **pipes)
        atexit.register(self.end)
        self.works = self.process.stdout.readline() == "true\n"

    def end(self):
        # a server that has ended already leaves a request unread
        with contextlib.suppress(BrokenPipeError): self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def fork(self, request):
        "The new process, or None"
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            return Forked(int(self.process.stdout.readline()))
        except (OSError, ValueError):
            self.works = False
            return None


servers:dict[tuple,Server] = {}


def start(
    cmd:list[str], # of a plain kernel: python, its options, -m ipykernel_launcher, its arguments
    env:dict,      # the kernel's environment
    cwd:str        # where it runs
)->Forked|None: # None where there must be a plain kernel
    "A kernel from the process that fits"
    if not hasattr(os, "pidfd_open") or "ipykernel_launcher" not in cmd: return None
    at = cmd.index("ipykernel_launcher")
    python = cmd[:at-1]  # -m stands between
    # what libraries read when they are loaded; the rest of the environment is each kernel's own
    own = {"JPY_SESSION_NAME", "JPY_PARENT_PID", "PWD", "PYTEST_CURRENT_TEST"}
    key = (*python, *sorted((k, v) for k, v in env.items() if k not in own))
    with _lock:
        if key not in servers: servers[key] = Server(python, env)
        if not servers[key].works: return None
        return servers[key].fork(dict(argv=cmd[at+1:], env=dict(env), cwd=str(cwd)))


def manager():
    "The class of kernel managers; jupyter_client is imported where it is needed"
    from jupyter_client import AsyncKernelManager
    class Manager(AsyncKernelManager):
        "Starts forked kernels, and plain ones where that is not possible"
        async def _async_launch_kernel(self, kernel_cmd, **kw):
            forked = start(kernel_cmd, kw["env"], kw.get("cwd") or os.getcwd())
            if forked is None: return await super()._async_launch_kernel(kernel_cmd, **kw)
            local = self.provisioner
            local.process = forked
            local.pid = local.pgid = forked.pid
            local.cwd = kw.get("cwd")
            self._reconcile_connection_info(local.connection_info)
    return Manager


if __name__ == "__main__": serve()
