"""Serving: plan a deployment, start it, wait for it, test it, find out what is wrong with it.

A deployment is a name, a profile (:mod:`.profile`) and a folder of its own (:mod:`.state`) that holds the
API key, what the server is started with, and, without a container, its log. SGLang runs in one of three
ways: by compose, by ``docker run`` or ``podman run`` (:mod:`.container`), or as a process of this machine
(:mod:`.local`); all three start :mod:`.serve`, which hands SGLang the key from the file, so that it stands
on no command line, in no environment and in no log.
"""
