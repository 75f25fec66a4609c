"""The iteration-by-iteration reference, rule by rule, against numbers worked out by hand.

Everywhere, unless a test says otherwise: a prefill iteration takes 1 + 0.1 T + 0.01 Q seconds, a decode
iteration 0.5 + 0.2 B + 0.001 sum(ctx). A chunked iteration with prompt tokens takes
1 + 0.1 (T + B) + 0.01 Q + 0.001 sum(ctx of decoding).
"""

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.serving.profile import FleetProfile
from qos_jax.serving.reference import ReferenceProfile, simulate_expert, simulate_fleet

BASE = ReferenceProfile(
    max_running=8,
    max_waiting=100,
    max_batched_tokens=100,
    kv_capacity_tokens=1000,
    prefill_base_s=1.0,
    prefill_per_token_s=0.1,
    prefill_per_token_sq_s=0.01,
    decode_base_s=0.5,
    decode_per_seq_s=0.2,
    decode_per_context_token_s=0.001,
)


def serve(requests, scheduler="prefill_first", **limits):
    """Serve rows of (arrival_s, prompt_tokens, output_tokens)."""
    profile = ReferenceProfile(**{**vars(BASE), **limits})
    return simulate_expert(profile, *zip(*requests, strict=True), scheduler=scheduler)


def ttft(run):
    return [o.ttft_s for o in run.outcomes]


def latency(run):
    return [o.latency_s for o in run.outcomes]


def status(run):
    return [o.status for o in run.outcomes]


def preemptions(run):
    return [o.preemptions for o in run.outcomes]


class TestBothSchedulers:
    pytestmark = pytest.mark.parametrize("scheduler", ["prefill_first", "chunked_prefill"])

    def test_durations_of_a_lone_request(self, scheduler):
        run = serve([(2.0, 10, 3)], scheduler)
        # Prefill 1 + 1 + 1 = 3; decodes at contexts 11 and 12: 0.711 + 0.712.
        assert ttft(run) == pytest.approx([3.0])
        assert latency(run) == pytest.approx([4.423])
        assert run.busy_s == pytest.approx(4.423)
        assert run.iterations == 3
        # Held at the start of each: 3 x 10 + 0.711 x 11 + 0.712 x 12.
        assert run.kv_token_s == pytest.approx(46.365)
        assert run.peak_kv_tokens == 13

    def test_one_output_token_completes_with_the_prefill(self, scheduler):
        run = serve([(0.0, 10, 1)], scheduler)
        assert ttft(run) == latency(run) == pytest.approx([3.0])
        assert run.iterations == 1

    def test_round_trip_counts_in_the_latency_only(self, scheduler):
        run = serve([(0.0, 10, 1)], scheduler, network_rtt_s=0.5)
        assert ttft(run) == pytest.approx([3.0])
        assert latency(run) == pytest.approx([3.5])
        assert run.busy_s == pytest.approx(3.0)

    def test_a_batch_shares_the_decode_iteration(self, scheduler):
        run = serve([(0.0, 10, 2), (0.0, 20, 2)], scheduler)
        # Both prompts at once: 1 + 3 + 0.01 (100 + 400) = 9; decode 0.5 + 0.4 + 0.001 (11 + 21) = 0.932.
        assert ttft(run) == pytest.approx([9.0, 9.0])
        assert latency(run) == pytest.approx([9.932, 9.932])

    def test_max_running_makes_the_next_wait(self, scheduler):
        # 3 s each, one after the other.
        assert latency(serve([(0.0, 10, 1)] * 3, scheduler, max_running=1)) == pytest.approx([3.0, 6.0, 9.0])

    def test_what_can_never_fit_is_rejected(self, scheduler):
        run = serve([(0.0, 10, 11), (1.0, 10, 10)], scheduler, kv_capacity_tokens=20)
        assert status(run) == ["rejected_too_long", "completed"]
        assert run.outcomes[0].ttft_s is run.outcomes[0].latency_s is None
        # The one that fits to the last token is alone, so never preempted, and starts when it arrives.
        assert preemptions(run) == [0, 0]
        assert run.peak_kv_tokens == 20
        assert run.outcomes[1].ttft_s == pytest.approx(3.0)

    def test_full_queue_rejects_at_the_instant_of_arrival(self, scheduler):
        # 0 runs until 3 exactly. 1 waits. 2 finds the queue full. So does 3, which arrives as the iteration
        # ends: 1 is admitted only after it is judged. 4 comes after that admission.
        run = serve(
            [(0.0, 10, 1), (1.0, 10, 1), (2.0, 10, 1), (3.0, 10, 1), (3.5, 10, 1)], scheduler, max_waiting=1
        )
        assert status(run) == ["completed", "completed", "rejected", "rejected", "completed"]
        assert latency(run)[:2] == pytest.approx([3.0, 5.0])
        assert run.outcomes[4].latency_s == pytest.approx(5.5)  # 6 + 3 - 3.5

    def test_simultaneous_arrivals_are_all_queued_before_the_iteration_starts(self, scheduler):
        assert ttft(serve([(0.0, 10, 1), (0.0, 10, 1)], scheduler)) == pytest.approx([5.0, 5.0])  # 1 + 2 + 2
        # So with one queue position, even an idle expert turns the second away.
        run = serve([(0.0, 10, 1), (0.0, 10, 1)], scheduler, max_waiting=1)
        assert status(run) == ["completed", "rejected"]

    def test_arrival_exactly_at_the_end_of_the_last_iteration_starts_the_next(self, scheduler):
        run = serve([(0.0, 10, 1), (3.0, 10, 1)], scheduler)
        assert ttft(run) == pytest.approx([3.0, 3.0])
        # Boundaries 0, 3, 6: the exact ties do not count, the next nearest is 3 s away.
        assert run.closest_tie_s == 3.0

    def test_closest_tie(self, scheduler):
        assert serve([(0.0, 10, 1), (2.75, 10, 1)], scheduler).closest_tie_s == 0.25
        assert serve([(0.0, 10, 1), (3.125, 10, 1)], scheduler).closest_tie_s == 0.125
        # The start on an idle expert is a boundary too: 0.0625 s earlier and both had been served at once.
        assert serve([(0.0, 10, 1), (0.0625, 10, 1)], scheduler).closest_tie_s == 0.0625

    def test_rejected_arrivals_do_not_wake_the_expert(self, scheduler):
        run = serve([(0.0, 10, 1000), (7.0, 10, 1000)], scheduler)
        assert (run.iterations, run.busy_s, run.closest_tie_s) == (0, 0.0, np.inf)

    def test_empty_trace(self, scheduler):
        run = simulate_expert(BASE, [], [], [], scheduler=scheduler)
        assert (run.outcomes, run.iterations, run.closest_tie_s) == ([], 0, np.inf)

    def test_one_slot_is_a_single_server_queue(self, scheduler):
        rng = np.random.default_rng(0)
        arrival = np.cumsum(rng.exponential(20.0, 50))
        prompt, output = rng.integers(1, 50, 50), rng.integers(1, 30, 50)
        run = serve(zip(arrival, prompt, output, strict=True), scheduler, max_running=1)
        finish = 0.0
        for a, p, o, outcome in zip(arrival, prompt, output, run.outcomes, strict=True):
            decodes = o - 1
            context = decodes * (p + 1) + decodes * (decodes - 1) / 2
            finish = max(finish, a) + 1 + 0.1 * p + 0.01 * p**2 + 0.7 * decodes + 0.001 * context
            assert outcome.latency_s == pytest.approx(finish - a)

    def test_everything_is_accounted_for_under_pressure(self, scheduler):
        rng = np.random.default_rng(1)
        num = 300
        arrival = np.cumsum(rng.exponential(4.0, num))
        prompt, output = rng.integers(1, 60, num), rng.integers(1, 40, num)
        run = serve(
            zip(arrival, prompt, output, strict=True),
            scheduler,
            max_running=6,
            max_waiting=5,
            max_batched_tokens=40,
            kv_capacity_tokens=95,
        )
        assert [o.request_id for o in run.outcomes] == list(range(num))
        assert set(status(run)) == {"completed", "rejected"}
        assert sum(preemptions(run)) > 0
        assert 80 < run.peak_kv_tokens <= 95
        done = [o for o in run.outcomes if o.status == "completed"]
        assert all(0 < o.ttft_s <= o.latency_s for o in done)
        # A single batch at a time: the work fits between the first arrival and the last completion.
        end = max(arrival[o.request_id] + o.latency_s for o in done)
        assert run.busy_s <= end - arrival[0] + 1e-9
        # First come, first served: first tokens appear in the order of arrival.
        first = [arrival[o.request_id] + o.ttft_s for o in done]
        assert first == sorted(first)


class TestPrefillFirst:
    def test_prompts_stall_the_running(self):
        # 0 prefills until 3. 1, there by then, prefills until 6; only then does 0 decode: 0.711.
        run = serve([(0.0, 10, 2), (3.0, 10, 1)])
        assert ttft(run) == pytest.approx([3.0, 3.0])
        assert latency(run) == pytest.approx([6.711, 3.0])

    def test_a_head_that_does_not_fit_blocks_those_behind(self):
        # At 3 request 0 holds 11, so 1 would need 11 + 25 + 1 = 37 > 30, and 2, which would fit, waits behind
        # it. 0 decodes at 11, 12, 13, 14: 2.85, until 5.85. Then 26 + 3 <= 30: both, in 1 + 2.7 + 6.29.
        run = serve([(0.0, 10, 5), (0.5, 25, 1), (0.5, 2, 1)], kv_capacity_tokens=30)
        assert ttft(run) == pytest.approx([3.0, 15.34, 15.34])

    def test_budget_binds_from_the_second_admitted_on(self):
        # 10 > 8 goes alone, 3 s; then 3 + 5 = 8 together, 1 + 0.8 + 0.34 = 2.14; then 1, in 1.11.
        run = serve([(0.0, 10, 1), (0.0, 3, 1), (0.0, 5, 1), (0.0, 1, 1)], max_batched_tokens=8)
        assert ttft(run) == pytest.approx([3.0, 5.14, 5.14, 6.25])

    @pytest.mark.parametrize(("capacity", "second"), [(14, 2.94), (13, 1.75 + 2.19)])
    def test_memory_counts_the_token_each_admitted_will_gain(self, capacity, second):
        # (5 + 1) + (7 + 1) = 14. Together 1 + 1.2 + 0.74 = 2.94; apart 1.75, then 2.19.
        run = serve([(0.0, 5, 1), (0.0, 7, 1)], kv_capacity_tokens=capacity)
        assert ttft(run)[1] == pytest.approx(second)

    # Shared by the next two. 0 and 1 prefill together: 7 + 9 <= 20, until 1 + 1.4 + 1 = 3.4. Decodes need
    # 16 + 2 and 18 + 2: 0.916 and 0.918, until 5.234. The next needs 20 + 2 > 20: 1, the later, returns with
    # 3 tokens. 0 decodes alone at 9 (until 5.943) and at 10 .. 15, 6 x 0.7 + 0.075, until 10.218; all along
    # 1 would need 10 + 11 + 1 > 20.
    PRESSED = ((0.0, 6, 10), (0.0, 8, 4))

    def test_preempted_keeps_its_tokens_and_prefills_them_again(self):
        run = serve(self.PRESSED, kv_capacity_tokens=20)
        # 8 + 3 = 11 tokens: 1 + 1.1 + 1.21 = 3.31 from 10.218, which yields its fourth and last token.
        assert latency(run) == pytest.approx([10.218, 13.528])
        assert ttft(run) == pytest.approx([3.4, 3.4])
        assert preemptions(run) == [0, 1]
        assert run.peak_kv_tokens == 20

    def test_preempted_returns_to_its_place_and_counts_in_the_queue(self):
        # 2 (1 token) waits from 5.0. After 5.234 it would fit, but 1 is back in front of it. 3 comes at 5.1,
        # before the preemption, and finds one waiting; 4 comes at 5.5, after it, and finds 1, 2 and 3. At
        # 10.218 all three prefill: 12 + 2 + 2 <= 20, 1 + 1.3 + 0.01 (121 + 1 + 1) = 3.53, until 13.748.
        run = serve(
            [*self.PRESSED, (5.0, 1, 1), (5.1, 1, 1), (5.5, 1, 1)], kv_capacity_tokens=20, max_waiting=2
        )
        assert status(run) == ["completed"] * 4 + ["rejected"]
        assert latency(run)[:4] == pytest.approx([10.218, 13.748, 8.748, 8.648])

    def test_several_preempted_at_once_come_back_in_order(self):
        # Prefill of all four, 8 <= 8, until 1.44. Then 8 + 4 > 8 and 6 + 3 > 8: 3 and 2 go. 0 and 1 decode,
        # 0.904 and 0.906, until 3.25; 8 + 2 > 8: 1 goes; 0 ends 0.704 + 0.705 later, at 4.659.
        # 1 (4 tokens) and 2 (2) prefill, 5 + 3 <= 8: 1.8, until 6.459; 2 goes; 1 ends at 7.164.
        # 2 (3) and 3 (2), 4 + 3 <= 8: 1.63, until 8.794; 3 goes; 2 ends 0.704 + 0.705 later, at 10.203.
        # 3 (3): 1.39 + 0.704 + 0.705, until 13.002.
        run = serve([(0.0, 1, 5)] * 4, kv_capacity_tokens=8)
        assert latency(run) == pytest.approx([4.659, 7.164, 10.203, 13.002])
        assert preemptions(run) == [0, 1, 2, 2]


class TestChunkedPrefill:
    def test_a_long_prompt_takes_several_iterations(self):
        # Chunks 8, 8, 4: 1 + 0.8 + 0.64, 1 + 0.8 + 0.01 (256 - 64), 1 + 0.4 + 0.01 (400 - 256): 9 in all.
        run = serve([(0.0, 20, 2)], "chunked_prefill", max_batched_tokens=8)
        assert ttft(run) == pytest.approx([9.0])
        assert latency(run) == pytest.approx([9.721])
        # The whole prompt's memory is held from its admission on.
        assert run.kv_token_s == pytest.approx(9.0 * 20 + 0.721 * 21)

    def test_decoding_and_prompts_share_the_budget(self):
        # 0 prefills until 1.56. Then it decodes (at 5) beside 7 tokens of 1: 1 + 0.8 + 0.49 + 0.005 = 2.295,
        # until 3.855; then (at 6) beside the last 3 of 1 and all 2 of 2:
        # 1 + 0.6 + 0.01 (100 - 49 + 4) + 0.006 = 2.156, until 6.011. 7 decodes at 7 .. 13 are left: 4.97.
        run = serve([(0.0, 4, 10), (1.0, 10, 1), (1.0, 2, 1)], "chunked_prefill", max_batched_tokens=8)
        assert ttft(run) == pytest.approx([1.56, 5.011, 5.011])
        assert latency(run) == pytest.approx([10.981, 5.011, 5.011])

    def test_nobody_is_admitted_once_the_budget_is_spent(self):
        # 0 takes all 8 tokens: 2.44, and only its memory is held. Then 0 decodes beside 1: 1.219.
        run = serve([(0.0, 8, 2), (0.0, 1, 1)], "chunked_prefill", max_batched_tokens=8)
        assert latency(run) == pytest.approx([3.659, 3.659])
        assert run.kv_token_s == pytest.approx(2.44 * 8 + 1.219 * (9 + 1))

    @pytest.mark.parametrize(("capacity", "first_token"), [(12, 2.415), (11, 3.721)])
    def test_memory_counts_the_token_each_running_may_gain(self, capacity, first_token):
        # At 1.56 request 0 holds 5, so 1 needs 5 + 1 + 5 + 1 = 12. So: 1 + 0.6 + 0.25 + 0.005, until 3.415.
        # Else 0 decodes at 5 and 6 until 2.971 and ends; then 1.75, until 4.721.
        run = serve([(0.0, 4, 3), (1.0, 5, 1)], "chunked_prefill", kv_capacity_tokens=capacity)
        assert ttft(run)[1] == pytest.approx(first_token)

    def test_memory_comes_first_and_a_partial_prefill_is_lost(self):
        # Both admitted: 2 + 1 + 12 + 1 <= 19; the budget of 4 gives 1 two tokens: 1.48. Then three at a time
        # beside 0 at 3, 4, 5: 1.613 + 1.794 + 1.975, until 6.862, with 11 of 12 done. Now 6 + 12 + 2 > 19: 1
        # goes. 0 decodes at 6 .. 13: 8 x 0.7 + 0.076 = 5.676, until 12.538 (1 would need 7 + 1 + 13 > 19).
        # 1 starts over with three chunks of 4: 3 + 1.2 + 1.44 = 5.64.
        run = serve(
            [(0.0, 2, 12), (0.0, 12, 1)],
            "chunked_prefill",
            max_running=4,
            max_batched_tokens=4,
            kv_capacity_tokens=19,
        )
        assert latency(run) == pytest.approx([12.538, 18.178])
        assert preemptions(run) == [0, 1]

    def test_preempted_keeps_its_tokens(self):
        # As prefill_first's case, since nothing else waits: until 10.218 the iterations are the same, and
        # the 11 tokens prefilled again bring the fourth token of 1, not its first.
        run = serve(TestPrefillFirst.PRESSED, "chunked_prefill", kv_capacity_tokens=20)
        assert latency(run) == pytest.approx([10.218, 13.528])
        assert ttft(run) == pytest.approx([3.4, 3.4])


class TestContextLimit:
    @pytest.mark.parametrize("scheduler", ["prefill_first", "chunked_prefill"])
    def test_an_output_is_cut_where_it_reaches_the_limit(self, scheduler):
        run = serve([(0.0, 10, 11)], scheduler, context_limit_tokens=15)
        # Decodes at contexts 11 to 14.
        assert latency(run) == pytest.approx([3.0 + 0.711 + 0.712 + 0.713 + 0.714])
        assert run.outcomes[0].output_tokens == 5
        assert run.peak_kv_tokens == 15

    @pytest.mark.parametrize("scheduler", ["prefill_first", "chunked_prefill"])
    def test_a_prompt_that_leaves_no_room_is_too_long_whatever_the_queue(self, scheduler):
        rows = [(0.0, 10, 1), (0.0, 9, 5), (0.0, 9, 1), (0.0, 10, 1)]
        run = serve(rows, scheduler, context_limit_tokens=10, max_waiting=1)
        assert status(run) == ["rejected_too_long", "completed", "rejected", "rejected_too_long"]
        assert [o.output_tokens for o in run.outcomes] == [0, 1, 0, 0]

    @pytest.mark.parametrize(("given", "limit"), [(None, 20), (99, 20), (15, 15)])
    def test_a_slot_of_llama_cpp_has_its_share_of_the_cache(self, given, limit):
        run = serve(
            [(0.0, 10, 99)], "llama_cpp", max_running=2, kv_capacity_tokens=41, context_limit_tokens=given
        )
        assert run.outcomes[0].output_tokens == limit - 10

    def test_slots_of_llama_cpp_never_preempt(self):
        # In one pool of 40 both would outgrow it; with 20 each, the third waits for a slot.
        rows = [(0.0, 10, 30), (0.0, 10, 30), (0.0, 10, 1)]
        run = serve(rows, "llama_cpp", max_running=2, kv_capacity_tokens=40)
        assert preemptions(run) == [0, 0, 0]
        assert [o.output_tokens for o in run.outcomes] == [10, 10, 1]
        assert run.peak_kv_tokens == 40
        # Both prompts, 1 + 2 + 2; nine decodes of two; then the third's prompt, 1 + 1 + 1.
        decodes = sum(0.9 + 0.001 * 2 * (11 + k) for k in range(9))
        assert ttft(run) == pytest.approx([5.0, 5.0, 5.0 + decodes + 3.0])
        pooled = serve(rows, "chunked_prefill", max_running=2, kv_capacity_tokens=40)
        assert sum(preemptions(pooled)) > 0


class TestServerThatErrs:
    def run(self, requests, **options):
        return simulate_expert(BASE, *zip(*requests, strict=True), **options)

    def test_an_iteration_keeps_the_pace_at_its_start(self):
        run = self.run([(2.0, 10, 3)], pace=[(1.0, 2.0), (5.0, 3.0), (8.0, 0.5)])
        # Prefill 3 at twice that until 8, where the next begins at half of 0.711, then half of 0.712.
        assert ttft(run) == pytest.approx([6.0])
        assert latency(run) == pytest.approx([6.0 + 0.3555 + 0.356])
        assert run.busy_s == pytest.approx(6.7115)

    def test_an_outage_cuts_the_iteration_off_and_takes_everybody(self):
        rows = [(0.0, 10, 1), (1.0, 10, 9), (3.5, 10, 9), (4.0, 10, 1), (5.0, 10, 1)]
        run = self.run(rows, outages=[(3.25, 5.0)])
        assert status(run) == ["completed", "failed", "failed", "failed", "completed"]
        assert latency(run) == [pytest.approx(3.0), None, None, None, pytest.approx(3.0)]
        assert run.busy_s == pytest.approx(3.0 + 0.25 + 3.0)
        assert run.kv_token_s == pytest.approx(3 * (3.0 * 10))  # whole iterations

    def test_an_iteration_that_ends_as_the_outage_starts_has_ended(self):
        rows = [(0.0, 10, 1), (3.0, 10, 1)]
        assert status(self.run(rows, outages=[(3.0, 4.0)])) == ["completed", "failed"]
        assert status(self.run(rows, outages=[(2.9, 3.0)])) == ["failed", "completed"]
        assert status(self.run(rows, outages=[(7.0, np.inf)])) == ["completed", "completed"]

    @pytest.mark.parametrize(
        ("delays", "last"),
        [
            ({}, "rejected"),
            ({"failure_delay_s": 1.0}, "failed"),  # the second failed at 3.0
            ({"failure_delay_s": 1.5}, "rejected"),
            ({"detection_delay_s": 2.0}, "failed"),
            ({"detection_delay_s": 2.5}, "rejected"),
        ],
    )
    def test_who_has_failed_makes_room(self, delays, last):
        rows = [(0.5, 10, 9), (2.0, 10, 9), (3.0, 10, 9)]
        run = simulate_expert(
            ReferenceProfile(**{**vars(BASE), "max_waiting": 1}),
            *zip(*rows, strict=True),
            outages=[(1.0, 9.0)],
            **delays,
        )
        assert status(run) == ["failed", "failed", last]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pace": [(0.0, 0.0)]}, "not above 0"),
            ({"pace": [(0.0, np.inf)]}, "not above 0"),
            ({"pace": [(2.0, 1.0), (1.0, 1.0)]}, "sort the changes"),
            ({"outages": [(2.0, 1.0)]}, "ends before it starts"),
            ({"outages": [(0.0, 2.0), (1.0, 3.0)]}, "starts before the one it follows"),
        ],
    )
    def test_bad_input(self, options, message):
        with pytest.raises(InputError, match=message):
            self.run([(0.0, 10, 1)], **options)


class TestFleet:
    FLEET = FleetProfile(
        **{name: np.asarray([value, value]) for name, value in vars(BASE).items()}
        | {"decode_knots": (), "context_limit_tokens": None}
        | {"decode_base_s": np.asarray([0.5, 1.5], np.float32), "network_rtt_s": np.asarray([0.0, 0.25])}
    )

    def test_each_expert_serves_its_share(self):
        outcomes, runs = simulate_fleet(
            self.FLEET,
            [0.0, 0.0, 1.0, 2.0],
            [10, 10, 10, 10],
            [[2, 9], [9, 2], [9, 9], [1, 9]],
            [0, 1, -1, 0],
        )
        assert [o.request_id for o in outcomes] == [0, 1, 2, 3]
        assert [o.expert for o in outcomes] == [0, 1, None, 0]
        assert [o.status for o in outcomes] == ["completed", "completed", "dropped", "completed"]
        # 0: prefill 3, the prefill of 3 until 6, decode 0.711. 1: prefill 3, decode 1.711, round trip 0.25.
        assert [outcomes[i].latency_s for i in (0, 1, 3)] == pytest.approx([6.711, 4.961, 4.0])
        assert [len(run.outcomes) for run in runs] == [2, 1]
        assert runs[1].outcomes == [outcomes[1]]
        assert [run.busy_s for run in runs] == pytest.approx([6.711, 4.711])

    def test_profile_of_one_expert(self):
        one = ReferenceProfile.from_fleet(self.FLEET, 1)
        assert one == ReferenceProfile(**{**vars(BASE), "decode_base_s": 1.5, "network_rtt_s": 0.25})
        with pytest.raises(InputError, match="no expert 2"):
            ReferenceProfile.from_fleet(self.FLEET, 2)

    @pytest.mark.parametrize(
        ("arrival", "outputs", "expert", "message"),
        [
            ([1.0, 0.0], [[1, 1]] * 2, [0, 1], "sort the requests"),
            ([0.0, 1.0], [[1, 1]] * 2, [0, 2], "no expert 2"),
            ([0.0, 1.0], [1, 1], [0, 1], "shapes"),
        ],
    )
    def test_bad_input(self, arrival, outputs, expert, message):
        with pytest.raises(InputError, match=message):
            simulate_fleet(self.FLEET, arrival, [5, 5], outputs, expert)


class TestBadInput:
    @pytest.mark.parametrize(
        ("requests", "options", "message"),
        [
            ([(0.0, 5, 5)], {"scheduler": "sarathi"}, "'sarathi' is unknown"),
            ([(1.0, 5, 5), (0.5, 5, 5)], {}, "request 1 arrives at 0.5 s"),
            ([(np.nan, 5, 5)], {}, "not finite"),
            ([(0.0, 5, 5), (1.0, 0, 5)], {}, "'prompt_tokens': request 1 has 0"),
            ([(0.0, 5, 0)], {}, "'output_tokens': request 0 has 0"),
            ([(0.0, 5, 1.5)], {}, "whole numbers"),
            ([(0.0, 5, 5)], {"max_batched_tokens": 7}, "7 is below max_running 8"),
            ([(0.0, 5, 5)], {"max_running": 0}, "'max_running'"),
            ([(0.0, 5, 5)], {"max_waiting": 0}, "'max_waiting'"),
        ],
    )
    def test_says_what_is_wrong(self, requests, options, message):
        with pytest.raises(InputError, match=message):
            serve(requests, **options)

    def test_lengths_must_agree(self):
        with pytest.raises(InputError, match="disagree"):
            simulate_expert(BASE, [0.0, 1.0], [5, 5], [5])
        with pytest.raises(InputError, match="1 ids for 2"):
            simulate_expert(BASE, [0.0, 1.0], [5, 5], [5, 5], request_id=[3])
