"""What a joined node and its parent tell each other, after the rules of wire.py.

A joined node has no right to declare its queue, to bind it or to delete it: the parent does.
"""

from broker.bounds import Name, NodeName, Note
from broker.wire import Control


class RegisterNode(Control, kw_only=True, tag="register_node"):
    """Be my parent: declare my queue and bind it. Repeated with every heartbeat."""

    node: NodeName
    number: Name
    model: Name
    engine: Name


class RemoveNode(Control, kw_only=True, tag="remove_node"):
    """I leave and have stopped consuming: delete my queue if it is empty."""

    node: NodeName
    number: Name


class ParentAnswer(Control, kw_only=True, tag="parent_answer"):
    """The parent's answer to either. `reason`: why it refuses."""

    number: Name
    done: bool
    reason: Note = ""


AnyJoinMessage = RegisterNode | RemoveNode | ParentAnswer
