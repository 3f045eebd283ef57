"""What can go wrong with a bundle or with what a caller hands to it.

Knows no HTTP: `service.errors` gives each class a status. Every message is one sentence that says
what to do.

    DropserveError
    ├── BundleError             a bundle cannot be written, opened or trusted
    ├── ExportError             a network's export does not match the network
    ├── SettingsError           a flag, environment variable or settings file is wrong
    ├── DataError               a data set is missing, damaged or unusable
    ├── MethodError             a head cannot be asked this way
    └── InputError              a caller's images cannot be used
        ├── ImageDecodeError        not an image, truncated or corrupt
        ├── ImageTooLargeError      more pixels than allowed
        ├── ImageShapeError         wrong height, width or channels
        └── PixelValueError         not a number, or outside 0..1
"""


class DropserveError(Exception):
    """Base of every error that Dropserve raises on purpose."""


class BundleError(DropserveError):
    """A bundle cannot be written, opened or trusted."""


class ExportError(DropserveError):
    """A network's export does not match the network."""


class SettingsError(DropserveError):
    """A flag, environment variable or settings file is wrong."""


class DataError(DropserveError):
    """A data set is missing, damaged or unusable."""


class MethodError(DropserveError):
    """A head cannot be asked this way."""


class InputError(DropserveError):
    """A caller's images cannot be used."""


class ImageDecodeError(InputError):
    """The bytes are not an image of an accepted format, or are truncated or corrupt."""


class ImageTooLargeError(InputError):
    """The image declares more pixels than allowed."""


class ImageShapeError(InputError):
    """The numbers do not form an image of the expected height, width and channels."""


class PixelValueError(InputError):
    """A pixel is not a number, not finite, or outside 0..1."""
