"""How a model is used: which action is taken, where memory is kept, what noise is added."""
