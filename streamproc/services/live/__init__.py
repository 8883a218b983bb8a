"""The live page of the stream: `streamproc review` as a service.

It keeps nothing: what a gallery is it asks the matchers, and then follows the topics.
"""
