"""The ladder: from counting letters to today's GPT, one idea a rung, each with its evidence."""
