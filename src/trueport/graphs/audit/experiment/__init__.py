"""The experiment: the arithmetic of a graph's masks, worked out on a few small masks.

How a mask is spelled is endless; whether a hidden key is still seen is one question, which numbers answer.
"""
