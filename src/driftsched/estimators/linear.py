"""Two online linear models in log space: a ridge regression on few figures, and hashed words with steps of their own."""

from math import isfinite, sqrt

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


class Ridge:
    """Recursive least squares with a ridge prior.

    Minimises the squared error plus `penalty` x |weights - start|^2. Nothing is forgotten by default: forgetting with
    sparse figures winds the covariance up. With `memory` < 1 it forgets, and the covariance is held at its start.
    Source: Haykin, "Adaptive Filter Theory", the RLS algorithm.
    """

    def __init__(self, start: Vector, penalty: float, memory: float = 1.0) -> None:
        """`start`: shape (n,), the weights before anything is learnt. `penalty` > 0, 0 < `memory` <= 1."""
        self.weights = start.copy()
        self.covariance = np.eye(len(start)) / penalty
        self._max_trace = len(start) / penalty
        self._memory = memory

    def predict(self, figures: Vector) -> float:
        return float(figures @ self.weights)

    def learn(self, figures: Vector, error: float) -> None:
        """Correct the weights for an `error` (true - predicted) at `figures`, shape (n,). Clip it before."""
        towards = self.covariance @ figures
        gain = towards / (self._memory + float(figures @ towards))
        self.weights += gain * error
        self.covariance -= np.outer(gain, towards)
        if self._memory < 1:
            self.covariance /= self._memory
            trace = float(np.trace(self.covariance))
            if trace > self._max_trace:
                self.covariance *= self._max_trace / trace


class Words:
    """A weight for each place of a hashed table of words, learnt by AdaGrad.

    A word seen often takes small steps, a rare one large steps. The sum over a prompt's words is divided by the root
    of their number, so that long prompts are not predicted more wildly than short ones.
    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 2011.
    """

    def __init__(self, num_places: int, step: float) -> None:
        self.weights = np.zeros(num_places, np.float32)
        self.squares = np.ones(num_places, np.float32)  # sum of squared gradients
        self._step = step

    def predict(self, places: Places) -> float:
        """0 for no words."""
        return float(self.weights[places].sum()) / sqrt(len(places)) if len(places) else 0.0

    def learn(self, places: Places, error: float) -> None:
        """Correct for an `error` (true - predicted). Clip it before."""
        if not len(places) or not isfinite(error):
            return
        gradient = error / sqrt(len(places))
        squares = self.squares[places] + gradient * gradient
        self.squares[places] = squares
        self.weights[places] += self._step * gradient / np.sqrt(squares)
