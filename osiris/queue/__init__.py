"""The durable queue: inbox, outbox, runs and their transcripts in one database."""
