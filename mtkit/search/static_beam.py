"""Beam of a search in fixed shapes (see `static_search`), whose steps can be captured.

It chooses as `beam` does, and shares its formulas. Instead of growing sequences, it has a row for each step: the token
and the parent of every hypothesis. A finished hypothesis is remembered by where it ended, and is read back from there
at the end.

Shapes: B sentences, R of them that are searched (the first rows), K beam, C = 2K candidates, V vocabulary, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mtkit.search.beam import first_live, is_done
from mtkit.search.scores import final_scores
from mtkit.search.state import NEG_INF, Hypothesis, SearchOptions, read_arrays, rows_on
from mtkit.search.topk import topk_continuations


class StaticBeam:
    """The live hypotheses, and where the K best finished ones ended.

    Args:
        num_sentences: B.
        num_steps: T.
        options: options of the search.
        device: where it is held.
    """

    def __init__(
        self, num_sentences: int, num_steps: int, options: SearchOptions, device: torch.device
    ) -> None:
        self.options = options
        B, K, T = num_sentences, options.beam_size, num_steps

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self.length = numbers(1)
        """Tokens in the live hypotheses, not counting bos."""
        self.max_lengths_B = numbers(B)
        self.prefixes_BT = numbers(B, T)
        """Tokens that a hypothesis must start with, then -1."""
        self.tokens_BK = numbers(B, K)
        """The newest token of each live hypothesis."""
        self.log_probs_BK = torch.zeros(B, K, device=device)
        """Log-probabilities of live hypotheses; -inf where there are fewer than K, and in sentences that are done."""
        self.done_B = torch.zeros(B, dtype=torch.bool, device=device)
        self.finished_scores_BK, self.finished_log_probs_BK = (
            torch.zeros_like(self.log_probs_BK) for _ in range(2)
        )
        self.finished_ends_BK = numbers(B, K)
        """Ends of finished hypotheses, best first: K x length without eos, plus the live hypothesis that ended."""
        self.num_finished_B = numbers(B)
        self.all_tokens_TBK, self.all_parents_TBK = numbers(T, B, K), numbers(T, B, K)
        """The newest token of each live hypothesis after each step, and the one that it continued."""
        self.all_sums_TBK = torch.zeros(T, B, K, device=device)
        """Its log-probability then."""
        self._hypotheses_BK = torch.arange(K, device=device).expand(B, K)

    def start(self, max_lengths: Sequence[int], prefixes: Sequence[Sequence[int]]) -> None:
        """Begin with one live hypothesis for each sentence: bos."""
        R, P, device = len(max_lengths), max(map(len, prefixes), default=0), self.length.device
        self._empty()
        self.length.zero_()
        self.tokens_BK.fill_(self.options.bos)
        self.log_probs_BK[:R, 0] = 0.0
        self.done_B[:R] = False
        self.max_lengths_B[:R] = rows_on(device, max_lengths)
        if P:
            padded = [token for prefix in prefixes for token in [*prefix, *[-1] * (P - len(prefix))]]
            self.prefixes_BT[:R, :P] = rows_on(device, padded).view(R, P)

    def _empty(self) -> None:
        """Hold no sentence: all are done, with nothing found."""
        self.log_probs_BK.fill_(NEG_INF)
        self.finished_scores_BK.fill_(NEG_INF)
        self.finished_log_probs_BK.fill_(NEG_INF)
        self.done_B.fill_(True)
        self.max_lengths_B.zero_()
        self.num_finished_B.zero_()
        self.prefixes_BT.fill_(-1)

    def advance(self, log_probs_BKV: Tensor) -> Tensor:
        """Append a token to each live hypothesis, given the log-probabilities of the next one. This can be captured.

        Returns:
            The previous hypothesis that each one continues: [B, K].
        """
        K = self.options.beam_size
        log_probs_BC, parents_BC, tokens_BC = self._candidates(log_probs_BKV)
        ends_BC = tokens_BC == self.options.eos
        self._add_finished(log_probs_BC[:, :K], parents_BC[:, :K], ends_BC[:, :K])
        order_BK = first_live(ends_BC, K)
        live_BC = log_probs_BC.masked_fill(ends_BC, NEG_INF)
        log_probs_BK, parents_BK, tokens_BK = (
            x.gather(1, order_BK) for x in (live_BC, parents_BC, tokens_BC)
        )
        parents_BK = parents_BK.masked_fill(log_probs_BK == NEG_INF, 0)  # so that what is dead needs no slots
        self.tokens_BK.copy_(tokens_BK)
        self.log_probs_BK.copy_(log_probs_BK)
        for all_TBK, newest_BK in (
            (self.all_tokens_TBK, tokens_BK),
            (self.all_parents_TBK, parents_BK),
            (self.all_sums_TBK, log_probs_BK),
        ):
            all_TBK.index_copy_(0, self.length, newest_BK[None])
        self.length += 1
        self.done_B |= is_done(self, self.options)
        self.log_probs_BK.masked_fill_(self.done_B[:, None], NEG_INF)
        return parents_BK

    def _candidates(self, log_probs_BKV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the 2K most probable continuations: log-probabilities, parents and tokens.

        Where only one token is allowed, the first K continue each hypothesis with it, and the others are impossible.
        """
        K, eos = self.options.beam_size, self.options.eos
        prefix_B = self.prefixes_BT.index_select(1, self.length)[:, 0]
        last_B = self.max_lengths_B <= self.length + 1
        only_B1 = (last_B | (prefix_B >= 0))[:, None]
        only_BK = prefix_B.masked_fill(prefix_B < 0, eos)[:, None].expand(-1, K)
        only_log_probs_BK = log_probs_BKV.gather(2, only_BK[:, :, None])[:, :, 0] + self.log_probs_BK
        for first, end in self.options.suppressed_ranges:
            log_probs_BKV[:, :, first:end].fill_(NEG_INF)
        if self.options.min_length:
            early_1 = self.length < self.options.min_length
            log_probs_BKV[:, :, eos].masked_fill_(early_1, NEG_INF)
        best = topk_continuations(log_probs_BKV, self.log_probs_BK, 2 * K)
        impossible_BK = best[0][:, K:] + NEG_INF  # what is not a number stays so, and is an error at the end
        only = (
            torch.cat([only_log_probs_BK, impossible_BK], dim=1),
            torch.cat([self._hypotheses_BK, best[1][:, K:]], dim=1),
            torch.cat([only_BK, best[2][:, K:]], dim=1),
        )
        log_probs_BC, parents_BC, tokens_BC = (
            torch.where(only_B1, own, others) for own, others in zip(only, best, strict=True)
        )
        return log_probs_BC, parents_BC, tokens_BC

    def _add_finished(self, log_probs_BK: Tensor, parents_BK: Tensor, ends_BK: Tensor) -> None:
        """Add those of the K best candidates that end to the finished hypotheses, and keep the best K."""
        ends_BK = ends_BK & (log_probs_BK > NEG_INF)
        log_probs_BK = log_probs_BK.masked_fill(~ends_BK, NEG_INF)
        scores_BK = final_scores(log_probs_BK, self.length + 1, self.options)
        scores_BK, order_BK = torch.cat([self.finished_scores_BK, scores_BK], dim=1).topk(
            self.options.beam_size, dim=1
        )
        self.finished_scores_BK.copy_(scores_BK)
        for finished_BK, newest_BK in (
            (self.finished_log_probs_BK, log_probs_BK),
            (self.finished_ends_BK, self.length * self.options.beam_size + parents_BK),
        ):
            finished_BK.copy_(torch.cat([finished_BK, newest_BK], dim=1).gather(1, order_BK))
        self.num_finished_B += ends_BK.sum(dim=1)

    def move_to(self, target: StaticBeam, rows_R: Tensor) -> None:
        """Continue in another beam with sentences `rows_R`."""
        R, T = len(rows_R), min(len(self.all_tokens_TBK), len(target.all_tokens_TBK))
        target._empty()
        target.length.copy_(self.length)
        for name in (
            "max_lengths_B", "tokens_BK", "log_probs_BK", "done_B", "finished_scores_BK", "finished_log_probs_BK",
            "finished_ends_BK", "num_finished_B",
        ):  # fmt: skip
            getattr(target, name)[:R] = getattr(self, name)[rows_R]
        target.prefixes_BT[:R, :T] = self.prefixes_BT[rows_R, :T]
        for name in ("all_tokens_TBK", "all_parents_TBK", "all_sums_TBK"):
            getattr(target, name)[:T, :R] = getattr(self, name)[:T, rows_R]

    def results(self, rows: Sequence[int], length: int, options: SearchOptions) -> list[list[Hypothesis]]:
        """Return the `n_best` finished hypotheses of sentences `rows`, after `length` steps. Waits.

        Args:
            rows: the sentences.
            length: steps so far.
            options: those of the beam, but for `keep_log_probs`.
        """
        rows_R, K = rows_on(self.length.device, rows), self.options.beam_size
        finished = (self.finished_scores_BK, self.finished_log_probs_BK, self.finished_ends_BK)
        steps = (self.all_tokens_TBK, self.all_parents_TBK, self.all_sums_TBK)
        scores, log_probs, codes, all_tokens, all_parents, all_sums = read_arrays(
            [*(x[rows_R, : options.n_best] for x in finished), *(x[:length, rows_R] for x in steps)]
        )
        lengths, hypotheses = codes // K, codes % K  # [R, n]
        sentences = np.arange(len(rows))[:, None]
        tokens, sums = (np.zeros((*codes.shape, length), each.dtype) for each in (all_tokens, all_sums))
        for step in reversed(range(length)):  # from where a hypothesis ended back to bos
            tokens[:, :, step] = all_tokens[step, sentences, hypotheses]
            sums[:, :, step] = all_sums[step, sentences, hypotheses]
            before = all_parents[step, sentences, hypotheses]
            hypotheses = np.where(step < lengths, before, hypotheses)

        def hypothesis(row: int, rank: int) -> Hypothesis:
            end, log_prob = int(lengths[row, rank]), float(log_probs[row, rank])
            own = [0.0, *sums[row, rank, :end].tolist(), log_prob] if options.keep_log_probs else []
            each = tuple(after - before for before, after in pairwise(own))
            return Hypothesis(tokens[row, rank, :end].tolist(), float(scores[row, rank]), log_prob, each)

        return [
            [hypothesis(row, rank) for rank in range(codes.shape[1]) if scores[row, rank] > NEG_INF]
            for row in range(len(rows))
        ]
