"""Loading models, borrowing them and looking inside."""
