import pytest
from mocks import MockEngine

from ponder.budget.meter import Meter
from ponder.budget.prices import ANY, PriceList, Prices, dearest, load
from ponder.errors import UserError
from ponder.types import Spend


def written(tmp_path, text):
    path = tmp_path / "prices.toml"
    path.write_text(text)
    return path


def test_the_packaged_table_has_hosted_models_whose_cached_tokens_cost_no_more_than_their_prompts():
    models = load().models
    assert len(models) > 5
    for prices in models.values():
        assert 0 < prices.cached <= prices.prompt <= prices.output
        assert prices.per_hour == 0.0
    assert load().of("gpt-4o-mini").dollars(Spend(1_000_000, 1_000_000, 1_000_000)) == pytest.approx(0.15 + 0.075 + 0.6)


def test_a_users_table_adds_to_the_packaged_one_and_wins_over_it(tmp_path, monkeypatch):
    path = written(
        tmp_path,
        """
        ["gpt-4o-mini"]
        prompt = 1
        output = 2.0
        ["my/model"]
        per_hour = 3.6
    """,
    )
    for table in (load(path), (monkeypatch.setenv("PONDER_PRICES", str(path)), load())[1]):
        assert table.of("gpt-4o-mini") == Prices(1, 2.0)
        assert table.of("my/model").dollars(Spend(prompt_tokens=10**9, device_seconds=1000.0)) == pytest.approx(1.0)
        assert table.of("o3") == load(path).of("o3")
        assert table.sources[-1] == str(path)
        assert table.of("unknown") is None


def test_a_table_may_price_every_model_that_it_does_not_name(tmp_path):
    table = load(written(tmp_path, f'["{ANY}"]\nper_hour = 2.0'))
    assert table.of("anything").per_hour == 2.0
    assert table.of("gpt-4o").per_hour == 0.0


def test_an_unknown_model_is_refused_with_how_to_fix_it_and_likely_names():
    with pytest.raises(UserError, match=r"'gpt-4o-mni'.*PONDER_PRICES.*did you mean 'gpt-4o-mini'"):
        load().need("gpt-4o-mni")
    with pytest.raises(UserError, match=r"prices of 'x/y'.*per_hour for your own hardware"):
        PriceList().need("x/y")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[m]\nprompt = -1", r"\[m\]: price prompt = -1: .*million"),
        ("[m]\nper_hour = inf", r"\[m\]: price per_hour = inf: .*per hour"),
        ("[m]\noutput = 'dear'", "price output = 'dear'"),
        ("[m]\nouput = 1", "unknown key 'ouput'; did you mean 'output'"),
        ("[m]", "no price"),
        ("[m]\nprompt = 1", r"\[m\] has no output: give dollars"),
        ("[m]\noutput = 1\ncached = 0.5", r"\[m\] has no prompt: give dollars"),
        ("[m]\ncached = 1", r"\[m\] has no prompt and no output: give dollars"),
        ("m = 3", "'m' is not a table"),
        ("[m", "not valid TOML"),
    ],
)
def test_a_bad_table_is_refused_by_file_and_entry(text, reason, tmp_path):
    with pytest.raises(UserError, match=rf"prices\.toml: .*{reason}"):
        load(written(tmp_path, text))


def test_a_table_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.toml: no such table of prices"):
        load(tmp_path / "nowhere.toml")


def test_the_dearest_of_several_is_the_highest_of_each_price():
    assert dearest([Prices(1, 5, 0.5), Prices(2, 3, per_hour=7)]) == Prices(2, 5, 2, 7)
    assert dearest([]) == Prices()


def test_what_opening_an_engine_cost_is_booked_at_its_prices():
    engine = MockEngine()
    engine.opening = Spend(prompt_tokens=200, sampled_tokens=60)
    meter = Meter(prices=Prices(prompt=1.0, output=10.0))
    assert meter.add_opening(engine) == meter.spend
    assert meter.add_opening(MockEngine()) == Spend()
    assert meter.spend.tokens == 260
    assert meter.spend.dollars == pytest.approx(200e-6 + 600e-6)
