"""Every shape and type annotation of the package is checked at run time while tests run."""

from jaxtyping import install_import_hook

# Before anything imports the package: modules that are already loaded are not checked.
install_import_hook("varrl_lightning", "typechecking.checker")
