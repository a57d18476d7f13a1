"""Rows of the conversations outside of GitHub."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from osiris.core.conversation import Conversation
from osiris.core.events import Address
from osiris.queue import serialization
from osiris.queue.tables import ConversationRow, now


async def load_conversation(session: AsyncSession, address: Address) -> Conversation | None:
    """Return a conversation, locked until the end of the transaction; None for a new one."""
    query = select(ConversationRow).where(
        ConversationRow.channel == address.channel, ConversationRow.name == address.conversation
    )
    row = await session.scalar(query.with_for_update())
    return serialization.load_conversation(row.data) if row else None


async def save_conversation(session: AsyncSession, conversation: Conversation) -> None:
    """Store a conversation in the transaction of `session`."""
    address = conversation.address
    row = ConversationRow(
        channel=address.channel,
        name=address.conversation,
        data=serialization.dump_conversation(conversation),
        updated=now(),
    )
    await session.merge(row)
