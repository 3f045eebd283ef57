"""The errors of a bundle, of a training, of settings and of a caller's input.

The classes know no HTTP: `service.errors` maps each one to a status. Every message is one sentence
that says what to do.

    DropserveError
    ├── BundleError             a bundle cannot be written, opened or verified
    │   └── UnreadableBundleError   it may be whole, but cannot be read now
    ├── RunError                the files of a training cannot be written or read
    ├── ExportError             the exported graphs do not match the network
    ├── SettingsError           a flag, environment variable or settings file is wrong
    ├── DataError               a data set is missing, damaged or unusable
    ├── MethodError             an uncertainty method does not apply to the model's head
    └── InputError              the images of a caller cannot be used
        ├── ImageDecodeError        not an image, truncated or corrupt
        ├── ImageTooLargeError      more pixels than allowed
        ├── ImageShapeError         wrong height, width or channels
        └── PixelValueError         not a number, or outside 0..1
"""


class DropserveError(Exception):
    """Base class of every error that Dropserve raises on purpose."""


class BundleError(DropserveError):
    """A bundle cannot be written, opened or verified."""


class UnreadableBundleError(BundleError):
    """A bundle that may be whole cannot be read now: disk, rights or memory stand in the way."""


class RunError(DropserveError):
    """The files of a training cannot be written or read."""


class ExportError(DropserveError):
    """The exported graphs do not match the network."""


class SettingsError(DropserveError):
    """A flag, environment variable or settings file is wrong."""


class DataError(DropserveError):
    """A data set is missing, damaged or unusable."""


class MethodError(DropserveError):
    """An uncertainty method does not apply to the model's head."""


class InputError(DropserveError):
    """The images of a caller cannot be used."""

    image: int | None = None
    """Which one of those that were given together, from 0; None: none of them alone."""


class ImageDecodeError(InputError):
    """The bytes are not an image of an accepted format, or are truncated or corrupt."""


class ImageTooLargeError(InputError):
    """The image declares more pixels than allowed."""


class ImageShapeError(InputError):
    """The numbers do not form an image of the expected height, width and channels."""


class PixelValueError(InputError):
    """A pixel is not a number, not finite, or outside 0..1."""
