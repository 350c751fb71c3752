"""Where Hydra looks for configuration besides conf/ and --config-dir: in folders that installed packages name."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class InstalledMethods(SearchPathPlugin):
    """Adds the folders of `compresskv.methods.installed_folders`, after conf/: no package replaces what is ours."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # Imported here, like all of the harness: Hydra imports this file at every start.
        from compresskv.methods import installed_folders

        for name, folder in installed_folders().items():
            search_path.append(f"installed-{name}", f"file://{folder}")
