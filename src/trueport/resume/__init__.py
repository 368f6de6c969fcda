"""An export that was interrupted goes on where it stopped: finished components are kept until it ends well."""
