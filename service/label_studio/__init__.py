"""What Label Studio sends and is sent: label configs, tasks' images, pre-annotations, annotations.

Knows no route and no model.
"""
