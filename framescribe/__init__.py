"""FrameScribe: LLaVA-Video over video data sets."""
