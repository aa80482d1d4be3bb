"""Quantization-aware training of BinaryMoS LLaMA models.

Start reading at distill.py (the loss) and binary_linear.py (the layer).
"""
