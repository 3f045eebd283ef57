"""Programs that measure speed, reliability and accuracy. They are no part of the tests."""
