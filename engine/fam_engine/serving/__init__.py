"""A loaded model over HTTP: OpenAI's completions with log-probs of prompts, and scores of many responses to one prompt.

What may come in here: what a request may hold (`protocol`), what is computed for it (`completions`, `scores`), the one
thread that computes (`worker`), token texts (`token_texts`), and HTTP itself (`app`, `server`: the only ones that
import starlette and uvicorn).
"""
