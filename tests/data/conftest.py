"Shared by the tests of data"
import pytest

from small import picture_files


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    "Thirty pictures; how bright one is says which it is"
    return picture_files(tmp_path_factory.mktemp("pictures"))
