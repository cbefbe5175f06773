from chexradinet.errors import RejectedImageError
from chexradinet.flows.decoding import decode_in_order
from chexradinet.flows.reading import Outcome

# Each "file" is an expression and `eval` is the decoder: it can be sent to another process, unlike
# a function of a test, and it can end the process it runs in.
DECODE = eval
CRASH = "__import__('os')._exit(1)"


def outcomes(files: list[str], num_workers: int) -> list[Outcome]:
    return list(decode_in_order(files, DECODE, num_workers))


def test_no_files_start_no_process() -> None:
    assert outcomes([], 0) == []


def test_file_that_kills_its_process_is_rejected_and_the_others_are_not() -> None:
    files = [str(number) for number in range(10)]
    files[5] = CRASH
    found = outcomes(files, 2)
    (crashed,) = [item for item in found if isinstance(item, RejectedImageError)]
    assert found.index(crashed) == 5
    assert crashed.reason == "unreadable"
    assert found[:5] + found[6:] == [0, 1, 2, 3, 4, *range(6, 10)]
