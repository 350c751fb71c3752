"""Add folders of configuration from installed packages to Hydra's search path."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class InstalledMethods(SearchPathPlugin):
    """Appends the folders of `compresskv.methods.installed_folders` to the search path.

    They come after conf/, so that no package replaces the harness's own configuration.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # Import here, as in all plugins, because Hydra imports this file at every start.
        from compresskv.methods import installed_folders

        for name, folder in installed_folders().items():
            search_path.append(f"installed-{name}", f"file://{folder}")
