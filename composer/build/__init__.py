"""A spec and spaces as policy and critic, with every problem at its place in the spec."""
