"""Generation: a decoder continues contexts, many at a time.

What may come in here: the types (`requests`), the generator and its run, the cache of keys and values, prompts
computed once, the choice of a token, and ids back to text with stop strings.
"""
