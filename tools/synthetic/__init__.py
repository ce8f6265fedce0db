"""Synthetic models: random weights in the shape of a real model, whose FFNs fire as sparse models do.

No ReLU model of 7 billion weights can be had here, and its speed from flash depends on which neurons fire for
which token, and on nothing else about its weights. So these do as published models were found to do:

active          10 % of the neurons for a token: Llama 2 7B with a ReLU, 89 % sparse in ProSparse
                (arXiv:2402.13516), about 90 % in "LLM in a flash" (arXiv:2312.11514)
hot neurons     22 % of a layer's neurons make 80 % of the activations. PowerInfer (arXiv:2312.12456) found
                26 % in OPT-30B and 43 % in ReGLU Llama 70B, and over whole models 17 % and 26 %
newly active    2.4 % of an FFN's neurons fire for a token and for none of the five before it: the figure of
                "LLM in a flash" for OPT 6.7B with a window of five tokens

They say nothing sensible, and no figure of theirs is one of a trained model.
"""
