from prometheus_client.parser import text_string_to_metric_families

from driftsched.telemetry.joining import join_pages
from driftsched.telemetry.prometheus import PrometheusListener


def page(policy: str) -> bytes:
    return PrometheusListener(policy=policy, estimator="ema", version="1").export()


def samples_of(text: bytes) -> list[tuple[str, dict[str, str], float]]:
    families = text_string_to_metric_families(text.decode())
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def test_every_series_of_every_pool_is_there_once_with_the_name_of_its_pool() -> None:
    pages = {"chat": page("fair"), "code": page("fifo")}
    expected = sorted(
        (name, sorted({**labels, "pool": pool}.items()))
        for pool, text in pages.items()
        for name, labels, _ in samples_of(text)
    )
    found = sorted((name, sorted(labels.items())) for name, labels, _ in samples_of(join_pages(pages)))
    assert expected == found


def test_a_family_is_one_block_with_one_head() -> None:
    joined = join_pages({"chat": page("fair"), "code": page("fifo")}).decode()
    heads = [line for line in joined.splitlines() if line.startswith("#")]
    assert len(set(heads)) == len(heads)
    names = [family.name for family in text_string_to_metric_families(joined)]
    assert len(set(names)) == len(names)


def test_samples_without_labels_get_one() -> None:
    text = b"# HELP up Is it?\n# TYPE up gauge\nup 1.0\n"
    assert b'# HELP up Is it?\n# TYPE up gauge\nup{pool="a"} 1.0\nup{pool="b"} 1.0\n' == join_pages(
        {"a": text, "b": text}
    )
