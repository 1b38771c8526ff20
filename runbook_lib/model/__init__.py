"""Plain data that all layers use: findings, outcomes of actions, orders, frames."""
