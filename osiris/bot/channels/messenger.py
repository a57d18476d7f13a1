"""The handler of the orders that send messages to conversations outside of GitHub."""

from collections.abc import Mapping, Sequence

from osiris.bot.channels.messages import write_message
from osiris.core.effects import SendMessage
from osiris.core.errors import Refused
from osiris.core.events import Event
from osiris.core.ports.channels import Channel
from osiris.core.task import Task


class Messenger:
    """Sends messages through the channels that are configured; links point to `github_url`."""

    def __init__(self, channels: Mapping[str, Channel], github_url: str) -> None:
        self._channels = channels
        self._github_url = github_url

    async def send_message(self, order: SendMessage, task: Task | None) -> Sequence[Event]:
        channel = self._channels.get(order.address.channel)
        if channel is None:
            raise Refused(f"the channel {order.address.channel} is not configured any more")
        text = write_message(order, task, self._github_url)
        await channel.send(order.address, text, order.dedup_key)
        return []
