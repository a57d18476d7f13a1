"""What makes work durable: inbox, outbox, runs and their transcripts in one database."""
