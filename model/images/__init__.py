"""Preprocessing: image files or arrays of numbers -> the input array of a network.

It knows no network and no HTTP.
"""
