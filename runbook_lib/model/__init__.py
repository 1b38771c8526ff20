"""Plain data that everything else speaks: findings, outcomes of actions, orders, frames."""
