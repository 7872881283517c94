"""Every query on the nodes that the autoscaler has started."""

from asgiref.sync import sync_to_async

from api.operate.models.load import ScaledNode
from api.operate.models.models import AutoscaledNode

MAX_NODES = 10_000


@sync_to_async
def stored() -> list[ScaledNode]:
    """All of them."""
    nodes = []
    for row in AutoscaledNode.objects.all()[:MAX_NODES]:
        nodes.append(ScaledNode(name=row.name, model=row.model, host=row.host, leaving=row.leaving))
    return nodes


async def put(node: ScaledNode) -> None:
    """Stores it, or how it is now."""
    fields = {"model": node.model, "host": node.host, "leaving": node.leaving}
    await AutoscaledNode.objects.aupdate_or_create(name=node.name, defaults=fields)


async def remove(names: list[str]) -> None:
    """These are no longer the autoscaler's."""
    await AutoscaledNode.objects.filter(name__in=names).adelete()
