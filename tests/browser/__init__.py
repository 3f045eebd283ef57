"""Tests of the pages for people, in a real Chromium against a real server. `make browser-test`."""
