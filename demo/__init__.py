"""A small LLaVA-Video checkpoint that really sees, the world it was trained on, and how good it is."""
