"""The wire format: one golden file a message, read by every side."""

import json
import struct
from pathlib import Path

import msgspec
import pytest

from broker import drill_messages as drills
from broker import host_messages as hosts
from broker import job_messages, join_messages, node_state, operator_messages, wire
from broker.conversation_events import ConversationChange
from broker.encoding import decode, encode

GOLDEN = Path(__file__).parent.parent / "golden"
WHO = {"request_id": "7d1f0c", "attempt": 2}
QUESTION = {"number": "a1", "reply_to": "canopy.watch.api-1.jobs"}

EXAMPLES: dict[str, tuple[object, wire.Wire]] = {
    "job": (
        wire.Job,
        wire.Job(
            request_id="7d1f0c",
            model="gemma-3-270m",
            reply_to="canopy.reply.api-1",
            created=1750000000.5,
            messages=(
                wire.ChatMessage(role="system", content="Be brief."),
                wire.ChatMessage(role="user", content="Hé 🌳"),
            ),
            sampling=wire.Sampling(
                max_tokens=32,
                temperature=0.7,
                top_p=0.9,
                top_k=40,
                seed=7,
                reproducible=True,
                stop=("\n\n",),
                min_p=0.05,
                repetition_penalty=1.1,
                frequency_penalty=0.5,
                presence_penalty=-0.5,
                logit_bias={17: -100, 4: 1.5},
                logprobs=2,
            ),
            add_special_tokens=False,
            add_generation_prompt=False,
            template_arguments='{"enable_thinking": false}',
            user="ada",
            key="5f3a9c01",
            job_class="batch",
            work=96.5,
            expected=64.0,
            most_running=2,
            most_waiting=16,
            share=2.0,
            attempt=2,
            restarted=True,
            flush_seconds=0.25,
            deadline=1750000060.0,
            trail=("root", "n1"),
            waits=(1.25, 0.0),
            delivered="Hel",
            delivered_ids=(17, 4),
            delivered_tokens=2,
            delivered_prompt_logprobs=5,
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            reply_token="5f3a9c01d2e4b6f85f3a9c01d2e4b6f8",
            signed_accounting="b4c1[]",
        ),
    ),
    "pooling_job": (
        wire.Job,
        wire.Job(
            request_id="7d1f0c",
            model="tiny-bert",
            reply_to="canopy.reply.api-1",
            created=1750000000.5,
            task="score",
            pooling=wire.Pooling(
                inputs=("Hé 🌳", (17, 4)),
                queries=("what grows?",),
                prompt_name="query",
                prompt="find: ",
                mode="mean",
                normalize=True,
                dimensions=64,
                truncate=-1,
            ),
            delivered_inputs=1,
        ),
    ),
    "vectors": (
        wire.Frames,
        wire.Frames(
            frames=(
                wire.Vectors(**WHO, seq=1, rows=(struct.pack("<2f", 1.0, -0.5),), token="5f3a9c01"),
            )
        ),
    ),
    "frames": (
        wire.Frames,
        wire.Frames(
            frames=(
                wire.Waiting(
                    **WHO,
                    node="root",
                    reason="every slot is busy",
                    code="busy",
                    slots=16,
                    position=12,
                    seconds=30.5,
                ),
                wire.ResumeRequest(**WHO, node="n1", incarnation="b7", number=3),
                wire.Start(
                    **WHO,
                    seq=0,
                    node="n1",
                    incarnation="b7",
                    trail=("root", "n1"),
                    waits=(1.25, 0.0),
                ),
                wire.Delta(
                    **WHO, seq=1, text="🌳 tree", tokens=3, ids=(17, 4, 9), prompt_tokens=11
                ),
                wire.Delta(
                    **WHO,
                    seq=2,
                    text="🌳",
                    tokens=2,
                    logprobs=(
                        wire.TokenLogprob(
                            "🌳".encode()[:2], -0.5, ((b" a", -0.25), (b"\xf0\x9f", -0.5))
                        ),
                        wire.TokenLogprob("🌳".encode()[2:], 0.0),
                    ),
                    prompt_logprobs=(wire.TokenLogprob(b"a", -1.5, ((b"b", -0.5),), ids=(17, 4)),),
                ),
                wire.Interrupted(**WHO, seq=2, reason="out of memory", fault=True),
                wire.Finished(**WHO, seq=2, reason="stop", prompt_tokens=12, completion_tokens=3),
                wire.Failed(
                    **WHO,
                    seq=2,
                    code="too_long",
                    message="5000 tokens, at most 4096",
                    retryable=False,
                ),
            )
        ),
    ),
    "cancel": (wire.AnyControl, wire.Cancel(request_id="7d1f0c", before=2, user="ada")),
    "cancel_copy": (wire.AnyControl, wire.Cancel(request_id="7d1f0c", token="5f3a9c01")),
    "register_node": (
        job_messages.AnyInboxMessage,
        join_messages.RegisterNode(node="room2", number="c0ffee", model="tiny", engine="echo"),
    ),
    "remove_node": (
        job_messages.AnyInboxMessage,
        join_messages.RemoveNode(node="room2", number="c0ffee"),
    ),
    "parent_answer": (
        job_messages.AnyInboxMessage,
        join_messages.ParentAnswer(number="c0ffee", done=False, reason="root serves tiny"),
    ),
    "continue": (
        wire.AnyControl,
        wire.ResumeGrant(
            request_id="7d1f0c",
            number=3,
            attempt=3,
            delivered="Hel",
            delivered_ids=(17, 4),
            delivered_tokens=2,
            delivered_prompt_logprobs=2,
            delivered_inputs=4,
            faults=("n1 died",),
        ),
    ),
    "supersede": (wire.AnyControl, wire.Supersede(request_id="7d1f0c", attempt=3)),
    "adopt": (wire.AnyControl, wire.Adopt(node="n4")),
    "remove_gone": (wire.AnyControl, wire.RemoveGone(nodes=("m1", "root-big"))),
    "drain": (wire.AnyControl, wire.Drain()),
    "resume": (wire.AnyControl, wire.Resume()),
    "restart": (wire.AnyControl, wire.Restart()),
    "stop": (wire.AnyControl, wire.Stop()),
    "attach": (wire.AnyControl, wire.Attach(parent="n2", for_good=False)),
    "ancestors": (wire.AnyControl, wire.Ancestors(names=("n1", "root"))),
    "ping": (wire.AnyControl, wire.Ping()),
    "leave": (wire.AnyControl, wire.Leave(node="n4")),
    "refused": (
        wire.AnyControl,
        wire.Refused(parent="root", reason="root serves gemma-3-270m, n9 serves echo"),
    ),
    "capacity": (
        wire.AnyControl,
        wire.Capacity(
            node="n4",
            incarnation="b7",
            number=41,
            slots=8,
            free=3,
            received=120,
            finished=117,
            accepting=False,
            users={"ada": 2, "": 1},
            engine="transformers",
        ),
    ),
    "state": (
        node_state.NodeState,
        node_state.NodeState(
            name="n1",
            parent="root",
            children=("n2",),
            model="gemma-3-270m",
            engine="transformers",
            device="cpu",
            policy="paper",
            status="busy",
            slots=8,
            running=8,
            held=2,
            received=40,
            finished=30,
            tokens=900,
            host="room-1",
            pid=4242,
            started=1750000000.0,
            sent=1750000100.0,
            detail="",
            waited=4.5,
            wait_error=0.5,
            prompt_tokens=1000,
            reused_tokens=430,
            context_length=8192,
            warning="a child reports 9 free slots of 4",
            failed=3,
            oldest_wait=12.5,
            memory=2_000_000_000,
            memory_total=8_000_000_000,
            memory_free=5_000_000_000,
            precision="int8",
            weights=300_000_000,
            cache=100_000_000,
            tasks=("embed",),
            version="0.1.0",
            loaded=0.25,
            joined=True,
        ),
    ),
    "report_jobs": (
        job_messages.AnyInboxMessage,
        job_messages.ReportJobs(seconds=15.0, limit=1000),
    ),
    "find_jobs": (
        job_messages.AnyInboxMessage,
        job_messages.FindJobs(**QUESTION, request_id="7d1", user="ada", limit=50),
    ),
    "cancel_job": (
        job_messages.AnyInboxMessage,
        job_messages.CancelJob(**QUESTION, request_id="7d1f0c"),
    ),
    "move_job": (
        job_messages.AnyInboxMessage,
        job_messages.MoveJob(**QUESTION, request_id="7d1f0c", before="all"),
    ),
    "change_class": (
        job_messages.AnyInboxMessage,
        job_messages.ChangeClass(**QUESTION, request_id="7d1f0c", job_class="batch"),
    ),
    "show_prompt": (
        job_messages.AnyInboxMessage,
        job_messages.ShowPrompt(**QUESTION, request_id="7d1f0c"),
    ),
    "job_report": (
        job_messages.JobReport,
        job_messages.JobReport(
            node="root",
            model="gemma-3-270m",
            waiting_count=240,
            batch_count=12,
            waiting=(
                job_messages.WaitingJob(
                    request_id="7d1f0c",
                    user="ada",
                    job_class="interactive",
                    position=1,
                    created=1750000000.5,
                    seconds=3.5,
                    reason="busy",
                    attempt=2,
                    restarted=True,
                ),
            ),
            running=(
                job_messages.RunningJob(
                    request_id="7d1f0d",
                    user="bob",
                    job_class="batch",
                    created=1750000000.5,
                    seconds=12.5,
                    tokens=240,
                    trail=("root", "n1"),
                    attempt=2,
                ),
            ),
        ),
    ),
    "job_answer": (
        job_messages.Answer,
        job_messages.Answer(
            number="a1",
            node="n1",
            known=True,
            done=True,
            note="cancelled",
            report=job_messages.JobReport(node="n1", model="echo", waiting_count=0, batch_count=0),
            prompt="user:\nHé 🌳",
            letters=10,
        ),
    ),
    "setting_changed": (
        job_messages.SettingChanged,
        job_messages.SettingChanged(process="api-1", setting="intake"),
    ),
    "start_node": (
        hosts.AnyHostRequest,
        hosts.StartNode(
            number="a1", node="n9", model="gemma-3-270m", parent="n2", slots=4, device="cuda:1"
        ),
    ),
    "stop_node": (hosts.AnyHostRequest, hosts.StopNode(number="a2", node="n9")),
    "kill_node": (hosts.AnyHostRequest, hosts.KillNode(number="a3", node="n9")),
    "host_state": (
        hosts.HostState,
        hosts.HostState(
            name="gpu-1",
            host="gpu-1.example.org",
            sent=1750000000.5,
            cpus=16,
            memory=64_000_000_000,
            memory_free=32_000_000_000,
            engine="transformers",
            max_nodes=8,
            devices=(hosts.HostDevice(name="cuda:0", memory=80_000, memory_free=70_000),),
            models=(hosts.HostModel(name="gemma-3-270m", bytes=536_000_000),),
            nodes=(
                hosts.HostNode(
                    name="n9",
                    state="failed",
                    model="gemma-3-270m",
                    parent="n2",
                    note="n9 did not start",
                    tail=("out of memory",),
                ),
            ),
            results=(hosts.HostResult(number="a1", accepted=False, note="no more are allowed"),),
            drills=True,
        ),
    ),
    "prepare_drill": (
        drills.AnyDrillMessage,
        drills.PrepareDrill(process="api-1", number="d1", node="n9"),
    ),
    "node_killed": (
        drills.AnyDrillMessage,
        drills.NodeKilled(process="api-1", number="d1", running=("7d1f0c",), waiting=("8a",)),
    ),
    "end_drill": (drills.AnyDrillMessage, drills.EndDrill(process="api-1", number="d1")),
    "drill_counts": (
        drills.AnyDrillMessage,
        drills.DrillCounts(
            process="api-2",
            number="d1",
            affected=15,
            moved=5,
            returned=4,
            lost=3,
            left=2,
            open=1,
            waiting=7,
            waiting_lost=6,
            slowest=1.25,
        ),
    ),
    "conversation_change": (
        ConversationChange,
        ConversationChange(
            process="api-1", user=7, change="created", conversation=41, message=1203
        ),
    ),
}

OPERATOR_EXAMPLES: dict[str, wire.Wire] = {
    "broker_overview": operator_messages.BrokerOverview(
        process="api-1",
        version="3.13.7",
        cluster="rabbit@host",
        members=(
            operator_messages.BrokerMember(
                name="rabbit@host",
                memory=120_000_000,
                memory_limit=3_200_000_000,
                memory_alarm=True,
                disk_free=9_000_000_000,
                disk_limit=50_000_000,
                connections=12,
                partitions=("rabbit@other",),
            ),
        ),
        queues=(
            operator_messages.QueueFigures(
                name="canopy.node.n1",
                ready=3,
                unacked=2,
                consumers=1,
                bytes=4096,
                published=12.5,
                delivered=11.8,
                head_age=1.5,
            ),
            operator_messages.QueueFigures(name="canopy.inbox.n1", consumers=1, exclusive=True),
        ),
        bindings=(
            operator_messages.Binding(
                source="canopy.node.root", destination="canopy.node.n1", key="n1"
            ),
        ),
        problem="it did not answer",
    ),
}


@pytest.mark.parametrize("name", OPERATOR_EXAMPLES)
def test_golden_messages_for_operators(name: str) -> None:
    message = OPERATOR_EXAMPLES[name]
    body = (GOLDEN / f"{name}.json").read_bytes()
    assert operator_messages.decode_operator_message(body, type(message)) == message
    assert json.loads(encode(message)) == json.loads(body)


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden(name: str) -> None:
    kind, message = EXAMPLES[name]
    body = (GOLDEN / f"{name}.json").read_bytes()
    assert decode(body, kind) == message
    assert json.loads(encode(message)) == json.loads(body)


def test_every_golden_file_has_an_example() -> None:
    examples = set(EXAMPLES) | set(OPERATOR_EXAMPLES)
    assert {path.stem for path in GOLDEN.glob("*.json")} == examples


@pytest.mark.parametrize("name", EXAMPLES)
def test_unknown_fields_are_ignored(name: str) -> None:
    kind, message = EXAMPLES[name]
    newer = json.dumps({**json.loads(encode(message)), "from_the_future": [1]}).encode()
    assert decode(newer, kind) == message


def test_messages_are_values() -> None:
    job = EXAMPLES["job"][1]
    with pytest.raises(AttributeError):
        job.model = "other"  # type: ignore[attr-defined, misc]
    assert msgspec.structs.replace(job, attempt=3) != job
