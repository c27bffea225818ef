"""FrameScribe annotates video data sets with LLaVA-Video: detailed captions and question-answer pairs."""
