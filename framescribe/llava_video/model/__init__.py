"""The model as it was trained: checkpoint, weights, vision tower, language model, prompts."""
