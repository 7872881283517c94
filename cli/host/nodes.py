"""The nodes of a host: the processes that its agent's supervisor runs, and requests to them."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path

from broker.host_messages import (
    MAX_RESULTS,
    TAIL_LINES,
    AnyHostRequest,
    HostDevice,
    HostModel,
    HostNode,
    HostResult,
    ProcessState,
    StartNode,
    StopNode,
)
from cli.errors import CliError, StateError
from cli.home import VENV_PYTHON, Home
from cli.host import machine
from cli.host.allowed import Allowed, Present, largest, refusal, shortage
from cli.plan import NewNode
from cli.process import Spec
from cli.supervisor import Supervisor
from topology.natural import natural_key

_STATES: dict[str, ProcessState] = {  # of the supervisor; any other one is running
    "restarting": "restarting",
    "leaving": "leaving",
    "removed": "removed",
}
_KEPT_FAILURES = 20
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")
_NOTE_LETTERS = 2_000
_LINE_LETTERS = 500


MakeSpec = Callable[[NewNode], Spec]


class HostNodes:
    """Carries requests out; `on_change()` is called when something has happened.

    `needs_files`: the engine loads models from folders, which are prepared first. `folders`: those
    that are prepared already, by public name.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        home: Home,
        make_spec: MakeSpec,
        allowed: Allowed,
        *,
        needs_files: bool,
        folders: Mapping[str, Path | None],
        drills: bool,
        on_change: Callable[[], None],
    ) -> None:
        self.devices: tuple[HostDevice, ...] = ()
        self.allowed = allowed
        self.drills = drills
        self.results: deque[HostResult] = deque(maxlen=MAX_RESULTS)
        self._supervisor = supervisor
        self._home = home
        self._make_spec = make_spec
        self._needs_files = needs_files
        self._folders = {name: folder for name, folder in folders.items() if folder}
        self._sizes = {name: weights(folder) for name, folder in self._folders.items()}
        self._on_change = on_change
        self._started: dict[str, StartNode] = {}  # on request, and not ended since
        self._beginning: dict[str, HostNode] = {}
        self._failed: OrderedDict[str, HostNode] = OrderedDict()  # the latest
        self._tasks: set[asyncio.Task[None]] = set()
        self._preparing = asyncio.Lock()  # one model at a time

    def obey(self, request: AnyHostRequest) -> None:
        """Accepts or refuses the request, and does what it asks in the background."""
        try:
            self._accept(request)
        except StateError as error:
            self._answer(request, False, str(error))

    def nodes(self) -> tuple[HostNode, ...]:
        """Every node process here, and those that recently failed to start."""
        states = {record.name: record for record in self._supervisor.roster.records()}
        listed = []
        for name in self._node_names():
            record = states.get(name)
            if record is not None and name not in self._beginning:
                listed.append(self._node(name, _STATES.get(record.state, "running"), record.pid))
        listed += [*self._beginning.values(), *self._failed.values()]
        return tuple(sorted(listed, key=lambda node: natural_key(node.name)))

    def models(self) -> tuple[HostModel, ...]:
        """What may be served here, with the size of the weights where that is known."""
        models = []
        for name in self.allowed.models:
            models.append(HostModel(name=name, bytes=self._sizes.get(name, 0)))
        return tuple(models)

    async def close(self) -> None:
        """Cancels what is under way; the supervisor ends the processes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, request: AnyHostRequest) -> None:
        name = request.node
        if isinstance(request, StartNode):
            reason = refusal(request, self.allowed, self._present())
            if reason is None and self._supervisor.has(name):  # the broker, say, is no node
                reason = f"a process {name} runs here already"
            if reason is not None:
                raise StateError(reason)
            self._failed.pop(name, None)
            self._begin(request, "preparing" if self._needs_files else "starting", "")
            self._run(self._start(request))
        elif name not in self._node_names():
            raise StateError(f"there is no node {name} here")
        elif isinstance(request, StopNode):
            self._run(self._stop(name))
        elif not self.drills:
            raise StateError("this host allows no drills (CANOPY_DRILLS=1)")
        else:
            self._supervisor.kill(name)
        self._answer(request, True, "")

    def _answer(self, request: AnyHostRequest, accepted: bool, note: str) -> None:
        self.results.append(HostResult(number=request.number, accepted=accepted, note=note))
        self._on_change()

    def _node_names(self) -> list[str]:
        """The supervised nodes; the supervisor may have other processes, too."""
        return self._supervisor.names("roots") + self._supervisor.names("nodes")

    def _present(self) -> Present:
        nodes = self._supervisor.names("nodes")
        _, free = machine.memory()
        return Present(
            names={*self._node_names(), *self._beginning},
            nodes=len(nodes) + len(self._beginning),
            memory_free=free,
            devices=self.devices,
        )

    # ---- one node

    async def _start(self, request: StartNode) -> None:
        name = request.node
        try:
            folder = None
            if request.parent is not None and self._needs_files:
                folder = await self._prepare(request)
                reason = shortage(self._sizes[request.model], request.device, self._present())
                if reason is not None:
                    raise StateError(f"{request.model} does not fit here: {reason}")
            new = NewNode(
                name, request.model, request.parent, request.slots, request.device, folder
            )
            self._begin(request, "starting", "loads its model")
            group = "roots" if request.parent is None else "nodes"
            await self._supervisor.add(group, self._make_spec(new))
            self._started[name] = request
        except (CliError, OSError) as error:
            self._fail(request, error)
        finally:
            self._beginning.pop(name, None)
            self._on_change()

    async def _prepare(self, request: StartNode) -> Path:
        """The model's folder; its download is shown as it goes. Raises CliError."""
        known = self._folders.get(request.model)
        if known is not None:
            return known
        name = f"model-for-{request.node}"
        command = [str(VENV_PYTHON), "-m", "worker.models", "prepare"]
        command.append(self.allowed.models[request.model])
        most = largest(request.device, self._present())
        if most is not None:
            command += ["--most-weights", str(most)]
        spec = Spec(name, command, {"CANOPY_HOME": str(self._home.path)})
        async with self._preparing:
            showing = asyncio.create_task(self._show_progress(request, name))
            try:
                # a download takes as long as it takes, and its progress is shown
                lines = await self._supervisor.run_once(spec, within=None)
            finally:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)
        folder = Path(lines[-1].strip()) if lines else Path()
        if not lines or not folder.is_dir():
            raise StateError(f"preparing {request.model} made no folder")
        self._folders[request.model] = folder
        self._sizes[request.model] = weights(folder)
        return folder

    async def _show_progress(self, request: StartNode, process: str) -> None:
        while True:
            await asyncio.sleep(1.0)
            line = self._supervisor.last_line(process)
            if line:
                self._begin(request, "preparing", line)

    async def _stop(self, name: str) -> None:
        try:
            await self._supervisor.remove(name)
        except CliError:
            return  # it has ended meanwhile
        finally:
            self._started.pop(name, None)
            self._on_change()

    def _begin(self, request: StartNode, state: ProcessState, note: str) -> None:
        self._beginning[request.node] = _shown(request, state, note)
        self._on_change()

    def _fail(self, request: StartNode, error: CliError | OSError) -> None:
        tail: list[str] = []
        if isinstance(error, CliError):
            tail = error.detail.splitlines()[-TAIL_LINES:]
        self._failed[request.node] = _shown(request, "failed", str(error), tail)
        while len(self._failed) > _KEPT_FAILURES:
            self._failed.popitem(last=False)

    def _node(self, name: str, state: ProcessState, pid: int) -> HostNode:
        request = self._started.get(name)
        if request is None:
            return HostNode(name=name, state=state, pid=pid)
        return HostNode(
            name=name, state=state, pid=pid, model=request.model, parent=request.parent or ""
        )

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name="host request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _shown(
    request: StartNode, state: ProcessState, note: str, tail: list[str] | None = None
) -> HostNode:
    lines = tuple(line[:_LINE_LETTERS] for line in tail or ())
    return HostNode(
        name=request.node,
        state=state,
        model=request.model,
        parent=request.parent or "",
        note=note[:_NOTE_LETTERS],
        tail=lines,
    )


def weights(folder: Path) -> int:
    """Bytes of the model's weights."""
    total = 0
    for file in folder.iterdir():
        if file.suffix in _WEIGHTS:
            total += file.stat().st_size
    return total
