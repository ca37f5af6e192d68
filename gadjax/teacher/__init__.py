"""The teacher: a chat API that answers prompts with text, and the ledger that keeps every answer paid for."""
