"""What a stage of nano's learns from drawn scenes."""
