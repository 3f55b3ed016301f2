"""Does a server speak OpenAI's Videos API? Asked with the official clients; imports no filmlet."""
