"""The OpenAI API over the server's language models: a file for each family of routes."""
